//! Downloads that stop and are gone on with, and what is here and not fetched again.

use super::*;

/// What a process that died left of a download is gone on with by the next, by byte range.
#[tokio::test]
async fn a_download_is_gone_on_with_by_another_process() {
    let test = image();
    let big = Digest::sha256(&test.blobs[1]);
    let served = test.clone();
    let ranges = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&ranges);
    let path = format!("blobs/{big}");
    let registry = serve(move |request| {
        if request.path.ends_with(&path) {
            let range = request.headers.get("range").cloned();
            seen.lock().unwrap().push(range.unwrap_or_default());
        }
        honest(&served, request)
    })
    .await;
    for (left, range) in [
        (test.blobs[1][..150_000].to_vec(), Some("bytes=150000-")),
        (test.blobs[1].clone(), None),
        (Vec::new(), Some("")),
    ] {
        let puller = Puller::new(&[&registry]);
        let ingest = puller.store.dir().join("ingest");
        std::fs::write(ingest.join(format!("sha256-{}", big.hex())), left).unwrap();
        puller.pull(&registry).await.unwrap();
        let asked: Vec<_> = std::mem::take(&mut *ranges.lock().unwrap());
        assert_eq!(asked, Vec::from_iter(range));
        assert_eq!(puller.store.verify().unwrap(), []);
        assert_eq!(std::fs::read_dir(ingest).unwrap().count(), 0);
    }
}

/// Zeroes, as a power cut leaves them, or another's bytes: the partial is dropped, and all is fetched once.
#[tokio::test]
async fn a_damaged_partial_download_is_dropped_and_fetched_from_its_beginning() {
    let test = image();
    let big = Digest::sha256(&test.blobs[1]);
    let served = test.clone();
    let count = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&count);
    let path = format!("blobs/{big}");
    let registry = serve(move |request| {
        if request.path.ends_with(&path) {
            seen.fetch_add(1, Ordering::SeqCst);
        }
        honest(&served, request)
    })
    .await;
    let mut flipped = test.blobs[1][..200_000].to_vec();
    flipped[100_000] ^= 1;
    // The rest was never written: the decompressor fails in the middle of a file.
    let mut unwritten = test.blobs[1][..200_000].to_vec();
    unwritten[100_000..].fill(0);
    for left in [vec![0; 150_000], flipped, unwritten] {
        let puller = Puller::new(&[&registry]);
        let ingest = puller.store.dir().join("ingest");
        std::fs::write(ingest.join(format!("sha256-{}", big.hex())), left).unwrap();
        puller.pull(&registry).await.unwrap();
        assert_eq!(count.swap(0, Ordering::SeqCst), 2);
        assert_eq!(puller.store.verify().unwrap(), []);
        assert_eq!(std::fs::read_dir(ingest).unwrap().count(), 0);
    }
}

/// Two pulls at once, of two stores on one directory as two processes have them, fetch each layer once.
#[tokio::test(flavor = "multi_thread")]
async fn two_pulls_at_once_fetch_a_layer_once() {
    let test = image();
    let served = test.clone();
    let fetched = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&fetched);
    let registry = serve(move |request| {
        seen.lock().unwrap().push(request.path.clone());
        honest(&served, request)
    })
    .await;
    let puller = Puller::new(&[&registry]);
    let other = ImageStore::open(puller.store.dir()).unwrap();
    let name: Reference = format!("{registry}/team/app:1").parse().unwrap();
    let (one, two) = tokio::join!(
        puller.store.pull(&name, &puller.options),
        other.pull(&name, &puller.options)
    );
    assert_eq!(one.unwrap().layers, two.unwrap().layers);
    for blob in &test.blobs {
        let path = format!("/v2/team/app/blobs/{}", sha256(blob));
        let fetched = fetched.lock().unwrap();
        assert_eq!(fetched.iter().filter(|p| **p == path).count(), 1, "{path}");
    }
}

/// The layer's directory is gone, its blob is not: nothing is fetched. A damaged blob is fetched again.
#[tokio::test]
async fn a_layer_is_made_again_from_its_blob() {
    let test = image();
    let served = test.clone();
    let fetched = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&fetched);
    let blobs: Vec<_> = test.blobs.iter().map(|b| sha256(b)).collect();
    let registry = serve(move |request| {
        if blobs.iter().any(|blob| request.path.ends_with(blob)) {
            seen.fetch_add(1, Ordering::SeqCst);
        }
        honest(&served, request)
    })
    .await;
    let puller = Puller::new(&[&registry]);
    let pulled = puller.pull(&registry).await.unwrap();
    assert_eq!(fetched.swap(0, Ordering::SeqCst), 2);
    for layer in &pulled.layers {
        std::fs::remove_dir_all(layer.parent().unwrap()).unwrap();
    }
    puller.pull(&registry).await.unwrap();
    assert_eq!(fetched.swap(0, Ordering::SeqCst), 0);
    std::fs::remove_dir_all(pulled.layers[1].parent().unwrap()).unwrap();
    let big = sha256(&test.blobs[1]).replace(':', "/");
    let mut damaged = test.blobs[1].clone();
    damaged[70_000] ^= 1;
    std::fs::write(puller.store.dir().join("blobs").join(big), damaged).unwrap();
    puller.pull(&registry).await.unwrap();
    assert_eq!(fetched.swap(0, Ordering::SeqCst), 1);
    assert_eq!(puller.store.verify().unwrap(), []);
}

/// What was damaged since it was pulled is mended: from the blob that is here, else from the registry.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_heals_itself_from_the_registry() {
    let test = image();
    let served = test.clone();
    let fetched = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&fetched);
    let registry = serve(move |request| {
        seen.lock().unwrap().push(request.path.clone());
        honest(&served, request)
    })
    .await;
    let puller = Puller::new(&[&registry]);
    let pulled = puller.pull(&registry).await.unwrap();
    fetched.lock().unwrap().clear();
    let blobs = puller.store.dir().join("blobs");
    let blob = |content: &[u8]| blobs.join(sha256(content).replace(':', "/"));
    std::fs::write(pulled.layers[0].join("low"), b"LOW").unwrap();
    std::fs::write(pulled.layers[1].join("noise"), b"").unwrap();
    std::fs::write(blob(&test.blobs[1]), b"").unwrap();
    std::fs::write(blob(&test.config), b"").unwrap();
    std::fs::write(blob(&test.manifest), b"").unwrap();
    let problems = puller.store.verify().unwrap();
    assert_eq!(problems.len(), 5);
    for problem in &problems {
        let healed = puller.store.heal_from_registry(problem, &puller.options);
        let healed = healed.await.unwrap();
        assert!(!matches!(healed, crate::Healed::Broken(_)), "{healed:?}");
    }
    assert_eq!(puller.store.verify().unwrap(), []);
    let low = sha256(&test.blobs[0]);
    let fetched = fetched.lock().unwrap();
    assert!(
        !fetched.iter().any(|path| path.ends_with(&low)),
        "{fetched:?}"
    );
    let big = sha256(&test.blobs[1]);
    assert_eq!(
        fetched.iter().filter(|path| path.ends_with(&big)).count(),
        1
    );
}
