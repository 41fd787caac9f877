//! `podling completion` and `podling man`: both generated from the command line's own definition.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::{Args, Command, CommandFactory};
use clap_complete::Shell;

use super::{Cli, CommandError, Exit, error::written};

/// Print a completion script for a shell
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  podling completion bash > /etc/bash_completion.d/podling
  podling completion zsh > /usr/local/share/zsh/site-functions/_podling
  podling completion fish > ~/.config/fish/completions/podling.fish")]
pub struct CompletionArgs {
    /// Which shell
    pub shell: Shell,
}

/// Write the manual pages into a directory
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  podling man /usr/local/share/man/man1 && man podling-run")]
pub struct ManArgs {
    /// Where to write podling.1, podling-run.1, …; made if it is missing
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
}

pub(super) fn completion(args: &CompletionArgs) -> Result<Exit, CommandError> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "podling", &mut script);
    written(std::io::stdout().lock().write_all(&script))
}

pub(super) fn man(args: &ManArgs) -> Result<Exit, CommandError> {
    std::fs::create_dir_all(&args.dir)
        .map_err(|e| CommandError::new(format!("cannot make {}", args.dir.display())).because(e))?;
    let mut command = Cli::command();
    command.build();
    write_pages(&command, "podling", &args.dir)?;
    Ok(Exit::Done)
}

/// One page for a command, and one for each of its subcommands: `podling-images-pull.1`.
fn write_pages(command: &Command, name: &str, dir: &Path) -> Result<(), CommandError> {
    let path = dir.join(format!("{name}.1"));
    let mut page = Vec::new();
    clap_mangen::Man::new(command.clone())
        .title(name.to_owned())
        .source(concat!("podling ", env!("CARGO_PKG_VERSION")))
        .manual("Podling")
        .render(&mut page)
        // clap_mangen's name for what stands below the options.
        .map(|()| String::from_utf8_lossy(&page).replace(".SH EXTRA", ".SH EXAMPLES AND NOTES"))
        .and_then(|page| std::fs::write(&path, page))
        .map_err(|e| CommandError::new(format!("cannot write {}", path.display())).because(e))?;
    for sub in command.get_subcommands() {
        if sub.is_hide_set() || sub.get_name() == "help" {
            continue;
        }
        write_pages(sub, &format!("{name}-{}", sub.get_name()), dir)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_for_each_command() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        man(&ManArgs {
            dir: dir.path().to_owned(),
        })
        .expect("pages are written");
        for page in ["podling.1", "podling-run.1", "podling-images-pull.1"] {
            let text = std::fs::read_to_string(dir.path().join(page)).expect(page);
            assert!(text.contains(".SH NAME"), "{page}");
        }
        assert!(!dir.path().join("podling-demo.1").exists());
    }
}
