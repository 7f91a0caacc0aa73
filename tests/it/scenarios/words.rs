//! The words of a step: addresses, names of objects, settings and fields.

use serde_json::Value;
use viaduct::control::{Kind, ObjectKey};
use viaduct::model::{Frontend, Protocol, ServiceName};

use super::script::Settings;

/// `ADDRESS:PORT/PROTOCOL`.
pub(super) fn frontend_of(text: &str) -> Result<Frontend, String> {
    let wrong = || format!("{text} is no ADDRESS:PORT/PROTOCOL");
    let (addr, protocol) = text.split_once('/').ok_or_else(wrong)?;
    let protocol = match protocol {
        "TCP" => Protocol::Tcp,
        "UDP" => Protocol::Udp,
        _ => return Err(wrong()),
    };
    Ok(Frontend::new(addr.parse().map_err(|_| wrong())?, protocol))
}

/// `KIND NAMESPACE/NAME`, or `KIND NAME` for kinds without a namespace; and what follows.
pub(super) fn key(text: &str) -> Result<(ObjectKey, &str), String> {
    let (kind_word, rest) = word(text);
    let (name, rest) = word(rest);
    let kind = Kind::ALL
        .into_iter()
        .find(|kind| kind.as_str() == kind_word)
        .ok_or_else(|| format!("{kind_word} is no kind that is read"))?;
    let (namespace, name) = match (kind.is_namespaced(), name.split_once('/')) {
        (true, Some(parts)) => parts,
        (false, None) if !name.is_empty() => ("", name),
        (true, None) | (false, _) => return Err(format!("{name:?} does not name a {kind}")),
    };
    let key = ObjectKey {
        kind,
        namespace: namespace.into(),
        name: name.into(),
    };
    Ok((key, rest))
}

/// A key and nothing after it.
pub(super) fn whole_key(text: &str) -> Result<ObjectKey, String> {
    match key(text)? {
        (key, "") => Ok(key),
        (_, rest) => Err(format!("{rest:?} is too much")),
    }
}

/// `NAMESPACE/NAME`.
pub(super) fn service_name(text: &str) -> Result<ServiceName, String> {
    let (namespace, name) = text
        .trim()
        .split_once('/')
        .ok_or_else(|| format!("{text:?} is no NAMESPACE/NAME"))?;
    Ok(ServiceName::new(namespace, name))
}

/// `NAME=VALUE` words.
pub(super) fn settings(text: &str) -> Result<Settings, String> {
    text.split_whitespace()
        .map(|word| match word.split_once('=') {
            Some((name, value)) => Ok((name.to_owned(), value.to_owned())),
            None => Err(format!("{word} is no NAME=VALUE")),
        })
        .collect()
}

/// Fields in YAML's flow style.
pub(super) fn yaml(text: &str) -> Result<Value, String> {
    if text.is_empty() {
        return Err("fields such as {spec: {type: NodePort}} are missing".to_owned());
    }
    serde_saphyr::from_str(text).map_err(|error| error.to_string())
}

/// What stands on both sides of `->`.
pub(super) fn arrow(text: &str) -> Result<(&str, &str), String> {
    text.split_once("->")
        .ok_or_else(|| "`->` is missing".to_owned())
}

/// The first word and the rest, both trimmed.
pub(super) fn word(text: &str) -> (&str, &str) {
    let text = text.trim();
    match text.split_once(char::is_whitespace) {
        Some((first, rest)) => (first, rest.trim()),
        None => (text, ""),
    }
}

/// One blank between words.
pub(super) fn normal(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
