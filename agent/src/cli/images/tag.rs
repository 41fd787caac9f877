//! `podling images tag`.

use clap::Args;
use podling_images::ImageStore;

use super::super::{CommandError, Exit};

/// Give an image more names
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  podling images tag nginx:1.27 localhost/web:stable
  podling images tag nginx:1.27 registry.example/web:1.27 registry.example/web:latest

The names mean the same image until one of them is loaded, pulled or tagged again. It takes no
space.")]
pub struct TagArgs {
    /// The image, by one of its names
    #[arg(value_name = "IMAGE")]
    pub image: String,
    /// The names to add
    #[arg(value_name = "NAME", required = true)]
    pub names: Vec<String>,
}

pub(super) fn tag(store: &ImageStore, args: &TagArgs) -> Result<Exit, CommandError> {
    let image = super::parse(&args.image)?;
    let names = super::parse_all(&args.names)?;
    for name in &names {
        if let Some(digest) = name.digest() {
            let found = super::find(store, &image)?;
            if found.digest != *digest && found.index.as_ref() != Some(digest) {
                return Err(
                    CommandError::usage(format!("{name} is another image than {image}"))
                        .hint("a digest says which image it is: give a name with a tag"),
                );
            }
        }
        store
            .tag(&image, name)
            .map_err(|e| CommandError::new(format!("cannot tag {image} as {name}")).because(e))?
            .ok_or_else(|| super::missing(&image))?;
        println!("tagged {name}");
    }
    Ok(Exit::Done)
}
