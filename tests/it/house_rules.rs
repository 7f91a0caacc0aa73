//! The rules of the house: what a reviewer would have to look for in every file, read from the sources instead.
//!
//! Each rule is a function from one file to its violations, and each is shown wrong examples that it must reject.

use std::fs;
use std::path::Path;

/// The map, from the top down. A module may import what lies below its own layer; within a layer modules are strangers
/// unless [`EXCEPTIONS`] says otherwise.
const LAYERS: [&[&str]; 6] = [
    &["main", "cli"],
    &["app", "config"],
    &["reconciler", "admin"],
    &[
        "sources",
        "capture",
        "dataplane",
        "dns",
        "workload",
        "health_checks",
    ],
    &["control", "balancers", "routing", "faults"],
    &["model"],
];

/// Used by every layer that is not pure; they import nothing of ours.
const LEAVES: [&str; 5] = ["net", "telemetry", "shutdown", "readiness", "privileges"];

/// The arrows within a layer: who may import what, as a prefix of the path.
const EXCEPTIONS: [(&str, &str); 4] = [
    ("main", "cli"),
    ("app", "config"),
    ("dataplane", "capture::plan"),
    ("balancers", "routing"),
];

/// Folders of decisions: no clock, no socket, no task, no environment.
const PURE_FOLDERS: [&str; 4] = ["model", "control", "routing", "balancers"];

/// Files of decisions in folders of effects.
const PURE_FILES: [&str; 4] = ["plan.rs", "flows.rs", "records.rs", "pace.rs"];

/// What a pure file may not say. A name ends where these end, unless they end in `:` or `(`.
const IMPURE: [&str; 20] = [
    "Instant::now",
    "SystemTime::now",
    "Timestamp::now",
    "Zoned::now",
    ".elapsed(",
    "async",
    ".await",
    "tokio::",
    "TcpStream",
    "TcpListener",
    "UdpSocket",
    "UnixStream",
    "UnixListener",
    "UnixDatagram",
    "socket2::",
    "nix::",
    "env::var",
    "std::fs",
    "std::process",
    "std::thread",
];

/// What only `net` may say: unsafe code, and the calls of std, tokio, socket2 and nix that set an option of a socket.
const NET_ONLY: [&str; 12] = [
    "unsafe",
    "setsockopt",
    ".set_keepalive(",
    ".set_linger(",
    ".set_mark(",
    ".set_nodelay(",
    ".set_only_v6(",
    ".set_recv_buffer_size(",
    ".set_reuse_address(",
    ".set_reuse_port(",
    ".set_send_buffer_size(",
    ".set_zero_linger(",
];

#[test]
fn imports_point_down() {
    assert_house(imports);
    assert_rejected(imports, "src/model/ids.rs", "use crate::routing::Route;");
    assert_rejected(imports, "src/dns/server.rs", "use crate::sources::Prober;");
    assert_rejected(
        imports,
        "src/dns/server.rs",
        "fn f(r: crate::reconciler::R) {}",
    );
    assert_rejected(
        imports,
        "src/dataplane/tcp.rs",
        "use crate::capture::Rules;",
    );
    assert_rejected(imports, "src/capture/nft.rs", "use crate::dataplane::Tcp;");
    assert_rejected(imports, "src/routing/table.rs", "use crate::balancers::A;");
    assert_rejected(
        imports,
        "src/control/object.rs",
        "use crate::{model::A, routing::B};",
    );
    assert_rejected(
        imports,
        "src/balancers/a.rs",
        "use crate::telemetry::render;",
    );
    assert_rejected(imports, "src/net/splice.rs", "use crate::model::Port;");
    assert_rejected(
        imports,
        "src/readiness.rs",
        "use crate::shutdown::Shutdown;",
    );
    assert_rejected(
        imports,
        "src/dns/server.rs",
        "use super::super::sources::Prober;",
    );
    assert_rejected(imports, "src/dns/mod.rs", "use super::sources::Prober;");
    assert_rejected(imports, "src/dns/server.rs", "use crate::surprise::Thing;");
    assert_rejected(imports, "src/surprise/mod.rs", "");
    assert_rejected(
        imports,
        "src/dns/mod.rs",
        "#[cfg(test)]\nmod tests;\nuse crate::sources::Prober;",
    );
    assert_accepted(
        imports,
        "src/dataplane/tcp.rs",
        "use crate::capture::plan::Rules;",
    );
    assert_accepted(imports, "src/dns/a/b.rs", "use super::super::wire::Name;");
    assert_accepted(imports, "src/dns/a.rs", "// like crate::sources::Prober");
    assert_accepted(
        imports,
        "src/routing/a.rs",
        "#[cfg(test)]\nmod tests {\n    use crate::testkit::ep;\n}\n",
    );
}

#[test]
fn decisions_read_no_clock_and_touch_no_socket() {
    assert_house(purity);
    for wrong in [
        "let now = Instant::now();",
        "let now = std::time::SystemTime::now();",
        "if start.elapsed() > limit {}",
        "pub async fn decide() {}",
        "socket.recv(&mut buffer).await",
        "use tokio::sync::mpsc;",
        "use std::net::{IpAddr, UdpSocket};",
        "let home = std::env::var(\"HOME\");",
    ] {
        assert_rejected(purity, "src/control/endpoints.rs", wrong);
        assert_rejected(purity, "src/dataplane/udp/flows.rs", wrong);
        assert_accepted(purity, "src/dataplane/udp/socket_loop.rs", wrong);
    }
    assert_accepted(
        purity,
        "src/model/a.rs",
        "fn later(now: Instant) {} // Instant::now",
    );
    assert_accepted(purity, "src/model/a.rs", "fn asynchronous() {}");
}

#[test]
fn unsafe_code_and_socket_options_are_in_net() {
    assert_house(net_only);
    for wrong in [
        "unsafe { libc::close(fd) };",
        "unsafe fn f() {}",
        "nix::sys::socket::setsockopt(fd, opt, &1)",
        "socket2::SockRef::from(&socket).set_linger(None)?;",
    ] {
        assert_rejected(net_only, "src/dataplane/relay.rs", wrong);
        assert_accepted(net_only, "src/net/splice.rs", wrong);
    }
    assert_accepted(
        net_only,
        "src/lib.rs",
        "#![deny(unsafe_code)] // no unsafe here",
    );
}

#[test]
fn every_file_says_what_it_is_for() {
    assert_house(described);
    assert_rejected(described, "src/dns/server.rs", "use std::fmt;");
    assert_rejected(described, "tests/it/dns.rs", "\n//! Too late.");
    assert_rejected(described, "src/dns/server.rs", "//!\nuse std::fmt;");
    assert_accepted(described, "src/dns/server.rs", "//! Answers queries.\n");
}

/// One source file, by its path from the root of the repository.
struct File {
    path: String,
    text: String,
}

impl File {
    /// The modules that lead to it: `["dns", "server"]`, and `["dns"]` for `src/dns/mod.rs`.
    fn modules(&self) -> Vec<&str> {
        let path = self.path.trim_start_matches("src/").trim_end_matches(".rs");
        path.split('/').filter(|part| *part != "mod").collect()
    }

    /// The top-level module; `None` outside `src/` and for the crate's root, which only lists modules.
    fn top(&self) -> Option<&str> {
        let top = *self.modules().first()?;
        (self.path.starts_with("src/") && top != "lib").then_some(top)
    }

    /// Whether it is compiled for tests only.
    fn is_test(&self) -> bool {
        let test = |part: &str| part == "tests" || part == "testkit" || part.ends_with("_tests");
        !self.path.starts_with("src/") || self.modules().into_iter().any(test)
    }

    /// Its code without comments and without modules that are compiled for tests only.
    fn code(&self) -> String {
        let mut code = String::new();
        let mut lines = self.text.lines().peekable();
        while let Some(line) = lines.next() {
            if line == "#[cfg(test)]" && lines.peek().is_some_and(|next| next.contains("mod ")) {
                // `mod tests;`, or a block whose end stands in the first column.
                let inline = lines.next().is_some_and(|next| next.ends_with('{'));
                while inline && lines.next().is_some_and(|next| next != "}") {}
                continue;
            }
            code.push_str(without_comment(line));
            code.push('\n');
        }
        code
    }
}

fn without_comment(line: &str) -> &str {
    // The slashes of a URL in a string are no comment.
    let starts = line
        .match_indices("//")
        .map(|(at, _)| at)
        .find(|at| !line[..*at].ends_with(':'));
    &line[..starts.unwrap_or(line.len())]
}

/// Rule: imports follow the map.
fn imports(file: &File) -> Vec<String> {
    let Some(top) = file.top().filter(|_| !file.is_test()) else {
        return Vec::new();
    };
    let Some(layer) = layer_of(top) else {
        return vec![format!("{top} is not on the map")];
    };
    let arrow_is_allowed = |target: &str| {
        let target_top = target.split("::").next().unwrap_or(target);
        let excepted = EXCEPTIONS.iter().any(|(from, to)| {
            *from == top && (target == *to || target.starts_with(&format!("{to}::")))
        });
        let is_leaf = LEAVES.contains(&target_top);
        let below = match (layer, layer_of(target_top)) {
            (Layer::Leaf, _) | (_, None) => false,
            (Layer::Numbered(_), Some(Layer::Leaf)) => !PURE_FOLDERS.contains(&top) && is_leaf,
            (Layer::Numbered(own), Some(Layer::Numbered(other))) => other > own,
        };
        target_top == top || excepted || below
    };
    let targets = imported(&file.code(), &file.modules());
    let wrong = targets
        .into_iter()
        .filter(|target| !arrow_is_allowed(target));
    wrong
        .map(|target| format!("{top} imports {target}"))
        .collect()
}

#[derive(Clone, Copy)]
enum Layer {
    Numbered(usize),
    Leaf,
}

fn layer_of(module: &str) -> Option<Layer> {
    if LEAVES.contains(&module) {
        return Some(Layer::Leaf);
    }
    let number = LAYERS.iter().position(|layer| layer.contains(&module))?;
    Some(Layer::Numbered(number))
}

/// Every path from the crate's root that the code names, by `crate::` or by enough `super::`.
fn imported(code: &str, modules: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        match rest.strip_prefix('{') {
            Some(group) => found.extend(group_members(group)),
            None => found.push(path_at(rest)),
        }
    }
    for (at, _) in code.match_indices("super::") {
        if code[..at].ends_with("::") {
            continue;
        }
        let mut rest = &code[at..];
        let mut depth = modules.len();
        while let Some(shorter) = rest.strip_prefix("super::") {
            rest = shorter;
            depth = depth.saturating_sub(1);
        }
        if depth == 0 {
            match rest.strip_prefix('{') {
                Some(group) => found.extend(group_members(group)),
                None => found.push(path_at(rest)),
            }
        }
    }
    found
}

/// The paths in `a::B, c::{D, E}}…`, up to the brace that closes the group.
fn group_members(group: &str) -> Vec<String> {
    let mut members = vec![String::new()];
    let mut depth = 0;
    for character in group.chars() {
        match character {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => members.push(String::new()),
            _ if depth == 0 => members.last_mut().unwrap().push(character),
            _ => {}
        }
    }
    let paths = members.iter().map(|member| path_at(member.trim()));
    paths.filter(|path| !path.is_empty()).collect()
}

fn path_at(text: &str) -> String {
    let end = text.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':'));
    text[..end.unwrap_or(text.len())]
        .trim_end_matches(':')
        .to_owned()
}

/// Rule: decisions are pure.
fn purity(file: &File) -> Vec<String> {
    let name = file.path.rsplit('/').next().unwrap_or_default();
    let pure = file.top().is_some_and(|top| PURE_FOLDERS.contains(&top))
        || (file.top().is_some() && PURE_FILES.contains(&name));
    if !pure || file.is_test() {
        return Vec::new();
    }
    says(&file.code(), &IMPURE)
}

/// Rule: the sharp tools lie in one drawer.
fn net_only(file: &File) -> Vec<String> {
    if file.top() == Some("net") || file.is_test() {
        return Vec::new();
    }
    says(&file.code(), &NET_ONLY)
}

/// Which of `words` the code contains as words of their own.
fn says(code: &str, words: &[&str]) -> Vec<String> {
    let part_of_name = |c: char| c.is_alphanumeric() || c == '_';
    let is_said = |word: &&&str| {
        code.match_indices(**word).any(|(at, _)| {
            let before = code[..at].chars().next_back();
            let after = code[at + word.len()..].chars().next();
            let starts = !word.starts_with(part_of_name) || !before.is_some_and(part_of_name);
            let ends = !word.ends_with(part_of_name) || !after.is_some_and(part_of_name);
            starts && ends
        })
    };
    let said = words.iter().filter(is_said);
    said.map(|word| format!("says `{word}`")).collect()
}

/// Rule: a file begins with what it is for.
fn described(file: &File) -> Vec<String> {
    let first = file.text.lines().next().unwrap_or_default();
    match first.strip_prefix("//!").map(str::trim) {
        Some(said) if !said.is_empty() => Vec::new(),
        Some(_) | None => vec!["does not begin with a line of `//!`".to_owned()],
    }
}

/// Applies a rule to every source file of the repository.
#[track_caller]
fn assert_house(rule: fn(&File) -> Vec<String>) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    for folder in ["src", "tests", "benches"] {
        read_folder(root, &root.join(folder), &mut files);
    }
    assert!(files.len() > 20, "only {} files were found", files.len());
    let violations: Vec<String> = files
        .iter()
        .flat_map(|file| {
            rule(file)
                .into_iter()
                .map(|v| format!("{}: {v}", file.path))
        })
        .collect();
    assert!(violations.is_empty(), "\n{}\n", violations.join("\n"));
}

fn read_folder(root: &Path, folder: &Path, files: &mut Vec<File>) {
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    for entry in entries {
        let path = entry.unwrap().path();
        if path.is_dir() {
            read_folder(root, &path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(File {
                path: path
                    .strip_prefix(root)
                    .unwrap()
                    .to_str()
                    .unwrap()
                    .to_owned(),
                text: fs::read_to_string(&path).unwrap(),
            });
        }
    }
}

fn judged(rule: fn(&File) -> Vec<String>, path: &str, text: &str) -> Vec<String> {
    rule(&File {
        path: path.to_owned(),
        text: text.to_owned(),
    })
}

#[track_caller]
fn assert_rejected(rule: fn(&File) -> Vec<String>, path: &str, text: &str) {
    assert!(
        !judged(rule, path, text).is_empty(),
        "{path} may not: {text}"
    );
}

#[track_caller]
fn assert_accepted(rule: fn(&File) -> Vec<String>, path: &str, text: &str) {
    let violations = judged(rule, path, text);
    assert!(violations.is_empty(), "{path} may: {text}\n{violations:?}");
}
