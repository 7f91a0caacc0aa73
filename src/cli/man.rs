//! `viaduct man`: the manual page, of the whole or of a subcommand.

use anyhow::Context;
use clap::{Args, CommandFactory};
use clap_mangen::Man as Page;

use super::{Cli, print};

#[derive(Debug, Args)]
#[command(after_help = "To read it: viaduct man load | man -l -")]
pub(super) struct Man {
    /// The subcommand to describe
    subcommand: Option<String>,
}

impl Man {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let mut command = Cli::command();
        command.build();
        if let Some(name) = &self.subcommand {
            command = command
                .find_subcommand(name)
                .with_context(|| format!("there is no subcommand {name}; viaduct --help has all"))?
                .clone();
        }
        let mut page = Vec::new();
        Page::new(command)
            .render(&mut page)
            .context("writing the page")?;
        print(&String::from_utf8(page)?)
    }
}
