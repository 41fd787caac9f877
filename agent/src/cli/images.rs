//! `podling images`: works on the image store itself, with or without a running agent.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{CommandError, Directories, Exit};

/// Work with the node's images
#[derive(Debug, Args)]
#[command(
    arg_required_else_help = true,
    after_help = "\
Examples:
  podling images pull docker.io/library/nginx:1.27
  podling images load app.tar               an OCI archive, a docker-archive or an OCI layout directory
  podling images list
  podling images verify                     read every byte again and compare it with its digest

The store belongs to --data-dir; these commands work with and without a running agent."
)]
pub struct ImagesArgs {
    /// What to do with them.
    #[command(subcommand)]
    pub command: ImagesCommand,
}

/// What `podling images` can do.
#[derive(Debug, Subcommand)]
pub enum ImagesCommand {
    /// List the images that the node has
    #[command(visible_alias = "ls")]
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Download an image from its registry
    Pull {
        /// Such as nginx, nginx:1.27, registry.example/app@sha256:…
        #[arg(value_name = "IMAGE", required = true)]
        images: Vec<String>,
        /// Another platform than this machine's, such as linux/arm64
        #[arg(long, value_name = "OS/ARCH")]
        platform: Option<String>,
        /// A Docker configuration file with credentials [default: ~/.docker/config.json]
        #[arg(long, value_name = "FILE")]
        auth_file: Option<PathBuf>,
        /// Print only errors
        #[arg(short, long)]
        quiet: bool,
    },
    /// Add images from files: OCI layouts, OCI archives, docker-archives
    Load {
        /// A directory or a tar file, perhaps compressed
        #[arg(value_name = "PATH", required = true)]
        paths: Vec<PathBuf>,
        /// Name the image this, instead of as the file says
        #[arg(long, value_name = "IMAGE")]
        name: Option<String>,
    },
    /// Print what is known of an image, as JSON
    Inspect {
        /// Its name
        #[arg(value_name = "IMAGE")]
        image: String,
    },
    /// Remove images; what no other image and no pod uses is freed
    #[command(visible_alias = "remove")]
    Rm {
        /// Their names
        #[arg(value_name = "IMAGE", required = true)]
        images: Vec<String>,
    },
    /// Read every blob again and compare it with its digest
    Verify,
}

pub(super) fn run(_args: ImagesArgs, _directories: &Directories) -> Result<Exit, CommandError> {
    Err(CommandError::new("not yet"))
}
