//! The list of trials, what each needs, and the count per capture mode that says how many really ran.

use std::collections::BTreeMap;
use std::process::{Command, ExitCode, Stdio};
use std::sync::{Arc, Mutex};

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use viaduct::capture::Mode;

/// Everything that is to be tried.
pub(crate) struct Trials {
    isolated: Result<(), String>,
    list: Vec<Trial>,
    ran: Arc<Mutex<BTreeMap<&'static str, usize>>>,
}

impl Trials {
    /// No trials yet. Without isolation all are skipped for that reason.
    pub(crate) fn new(isolated: Result<(), String>) -> Self {
        Self {
            isolated,
            list: Vec::new(),
            ran: Arc::default(),
        }
    }

    /// Adds one that tries `mode`, with the tools that it needs besides those of the mode.
    pub(crate) fn add(
        &mut self,
        mode: Mode,
        name: &str,
        tools: &[&str],
        trial: impl FnOnce() + Send + 'static,
    ) {
        self.add_where(mode, name, tools, || Ok(()), trial);
    }

    /// Adds one that needs besides what `kernel` finds here, or says that it lacks. Where the kernel lacks something, no
    /// wish makes it run, so it is skipped whatever is required.
    pub(crate) fn add_where(
        &mut self,
        mode: Mode,
        name: &str,
        tools: &[&str],
        kernel: impl FnOnce() -> Result<(), String> + Send + 'static,
        trial: impl FnOnce() + Send + 'static,
    ) {
        let name = format!("{mode}::{name}");
        let missing = self
            .isolated
            .clone()
            .and_then(|()| all_there(mode, tools))
            .err();
        let (ran, of_mode) = (self.ran.clone(), mode.as_str());
        let label = name.clone();
        self.list.push(Trial::ignorable_test(name, move || {
            if let Some(need) = missing {
                return skip(&label, &need);
            }
            if let Err(need) = kernel() {
                return Ok(skip_here(&label, &need));
            }
            trial();
            *ran.lock().unwrap().entry(of_mode).or_default() += 1;
            Ok(Completion::Completed)
        }));
    }

    /// Runs them and prints how many ran, by mode.
    pub(crate) fn run(self, arguments: &Arguments) -> ExitCode {
        let conclusion = libtest_mimic::run(arguments, self.list);
        if !arguments.list {
            for (mode, ran) in self.ran.lock().unwrap().iter() {
                println!("netns: {mode} {ran} ran");
            }
        }
        conclusion.exit_code()
    }
}

fn skip(name: &str, need: &str) -> Result<Completion, Failed> {
    if std::env::var_os("VIADUCT_REQUIRE_ALL").is_some() {
        return Err(format!("cannot run: needs {need}").into());
    }
    Ok(skip_here(name, need))
}

fn skip_here(name: &str, need: &str) -> Completion {
    eprintln!("skipped: {name} needs {need}");
    Completion::ignored_with(format!("needs {need}"))
}

// The first tool that is missing.
fn all_there(mode: Mode, tools: &[&str]) -> Result<(), String> {
    let of_mode: &[&str] = match mode {
        Mode::Nftables | Mode::Tproxy => &["nft"],
        Mode::Iptables => &["iptables", "ip6tables"],
        Mode::Local | Mode::Loopback | Mode::None => &[],
    };
    for tool in ["ip"].iter().chain(of_mode).chain(tools) {
        let mut version = Command::new(tool);
        let found = version
            .arg("--version")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        if found.is_err() {
            return Err((*tool).to_owned());
        }
    }
    Ok(())
}
