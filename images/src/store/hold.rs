//! Holds on images, for who starts containers of them: between finding an image and being among those whose layers are
//! in use, the image's name may come to mean another one, and the collector may come by, in this process or another.

use super::{Held, ImageStore, Session, StoreError};
use crate::image::Image;

/// Keeps all that an image consists of from every collector, until it is dropped. It does not outlive the process.
#[derive(Debug)]
pub struct ImageHold {
    _session: Session,
}

impl ImageStore {
    /// Holds an image that was found before. None if it was collected since then, or part of it: it must be found again.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn hold(&self, image: &Image) -> Result<Option<ImageHold>, StoreError> {
        let session = Session::begin(self)?;
        let documents = [&image.digest, &image.config_digest];
        let documents = documents.into_iter().chain(&image.index);
        let documents = documents.cloned().map(Held::Blob);
        let layers = image.parts.iter();
        let layers = layers.map(|layer| Held::Layer(layer.diff_id.clone()));
        session.hold(&documents.chain(layers).collect::<Vec<_>>())?;
        // What is held is not collected any more: what is here now stays.
        let is_here = image
            .parts
            .iter()
            .all(|layer| session.has_layer(&layer.diff_id));
        Ok(is_here.then_some(ImageHold { _session: session }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::LoadOptions;
    use crate::test_archive::{Tar, TestImage};

    fn load(store: &ImageStore, content: &[u8]) -> Image {
        let layout = tempfile::tempdir().unwrap();
        let image = TestImage::new(vec![Tar::new().file("app", content).finish()]);
        image.write_layout(layout.path(), "host.example/app:1");
        let mut loaded = store.load(layout.path(), &LoadOptions::default()).unwrap();
        loaded.remove(0)
    }

    /// As when a tag moves while a pod waits for its volumes, and somebody removes what has no name.
    #[test]
    fn an_image_that_is_held_outlives_its_name_until_it_is_let_go() {
        let dir = tempfile::tempdir().unwrap();
        let store = ImageStore::open(&dir.path().join("images")).unwrap();
        let old = load(&store, b"old");
        let hold = store.hold(&old).unwrap().unwrap();
        load(&store, b"new");
        // Another process.
        let other = ImageStore::open(store.dir()).unwrap();
        other.gc(&Default::default()).unwrap();
        let file = old.layers[0].join("app");
        assert_eq!(std::fs::read(&file).unwrap(), b"old");
        assert!(store.hold(&old).unwrap().is_some());
        drop(hold);
        other.gc(&Default::default()).unwrap();
        assert!(!file.exists());
        // Too late: it must be found again.
        assert!(store.hold(&old).unwrap().is_none());
        assert_eq!(store.verify().unwrap(), []);
    }
}
