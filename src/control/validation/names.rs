//! The shapes of names: DNS labels and subdomains, qualified names, label values, port names.
//!
//! Each check returns what is wrong in the API server's words; an empty list means fine. Source: apimachinery's
//! `validation` package.

const LABEL_SHAPE: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const SUBDOMAIN_SHAPE: &str = r"a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const QUALIFIED_SHAPE: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const LABEL_VALUE_SHAPE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";

/// The length of a DNS label, of the name part of a qualified name, and of a label value.
const MAX_LABEL: usize = 63;
/// The length of a DNS subdomain.
const MAX_SUBDOMAIN: usize = 253;
/// The length of a port name (RFC 6335).
const MAX_PORT_NAME: usize = 15;

/// A DNS label (RFC 1123): a Service name, a port name, a hostname.
pub(in crate::control) fn dns_label(value: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if value.len() > MAX_LABEL {
        wrong.push(too_long(MAX_LABEL, "characters"));
    }
    if !is_label_shaped(value) {
        // Its parts are labels, so the dots are all there is to complain about.
        wrong.push(if is_subdomain_shaped(value) {
            "must not contain dots".to_owned()
        } else {
            LABEL_SHAPE.to_owned()
        });
    }
    wrong
}

/// A DNS subdomain (RFC 1123): labels joined by dots. The single labels may be longer than 63.
pub(in crate::control) fn dns_subdomain(value: &str) -> Vec<String> {
    subdomain_within(value, "characters")
}

fn subdomain_within(value: &str, unit: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if value.len() > MAX_SUBDOMAIN {
        wrong.push(too_long(MAX_SUBDOMAIN, unit));
    }
    if !is_subdomain_shaped(value) {
        wrong.push(SUBDOMAIN_SHAPE.to_owned());
    }
    wrong
}

/// A label key, an annotation key, an application protocol: a name with an optional DNS prefix.
pub(in crate::control) fn qualified_name(value: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    let parts: Vec<_> = value.split('/').collect();
    let name = match parts.as_slice() {
        [name] => *name,
        ["", name] => {
            wrong.push("prefix part must be non-empty".to_owned());
            *name
        }
        [prefix, name] => {
            // Label keys are measured in bytes, in other words than names.
            let faults = subdomain_within(prefix, "bytes");
            wrong.extend(faults.iter().map(|fault| format!("prefix part {fault}")));
            *name
        }
        _ => {
            return vec![format!(
                "a valid label key {QUALIFIED_SHAPE} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
            )];
        }
    };
    if name.is_empty() {
        wrong.push("name part must be non-empty".to_owned());
    } else if name.len() > MAX_LABEL {
        wrong.push(format!("name part {}", too_long(MAX_LABEL, "bytes")));
    }
    if !is_qualified_shaped(name) {
        wrong.push(format!("name part {QUALIFIED_SHAPE}"));
    }
    wrong
}

/// The value of a label; empty is fine.
pub(in crate::control) fn label_value(value: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if value.len() > MAX_LABEL {
        wrong.push(too_long(MAX_LABEL, "bytes"));
    }
    if !value.is_empty() && !is_qualified_shaped(value) {
        wrong.push(LABEL_VALUE_SHAPE.to_owned());
    }
    wrong
}

/// A port's name where it stands for a number: an IANA service name (RFC 6335).
pub(in crate::control) fn port_name(value: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if value.len() > MAX_PORT_NAME {
        wrong.push(too_long(MAX_PORT_NAME, "characters"));
    }
    let known = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if value.is_empty() || !value.chars().all(known) {
        wrong.push(
            "must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".to_owned(),
        );
    }
    if !value.contains(|c: char| c.is_ascii_lowercase()) {
        wrong.push("must contain at least one letter (a-z)".to_owned());
    }
    if value.contains("--") {
        wrong.push("must not contain consecutive hyphens".to_owned());
    }
    if value.starts_with('-') || value.ends_with('-') {
        wrong.push("must not begin or end with a hyphen".to_owned());
    }
    wrong
}

fn too_long(most: usize, unit: &str) -> String {
    format!("must be no more than {most} {unit}")
}

fn is_label_shaped(value: &str) -> bool {
    let alphanumeric = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    let bytes = value.as_bytes();
    bytes.first().is_some_and(|c| alphanumeric(*c))
        && bytes.last().is_some_and(|c| alphanumeric(*c))
        && bytes.iter().all(|c| alphanumeric(*c) || *c == b'-')
}

fn is_subdomain_shaped(value: &str) -> bool {
    value.split('.').all(is_label_shaped)
}

fn is_qualified_shaped(value: &str) -> bool {
    let bytes = value.as_bytes();
    bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.last().is_some_and(u8::is_ascii_alphanumeric)
        && bytes
            .iter()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_have_both_bounds() {
        assert!(dns_label(&"a".repeat(63)).is_empty());
        assert_eq!(
            dns_label(&"a".repeat(64)),
            ["must be no more than 63 characters"]
        );
        assert_eq!(dns_label(""), [LABEL_SHAPE]);
        assert_eq!(dns_label("a.b"), ["must not contain dots"]);
        assert!(dns_label("0-a").is_empty());
    }

    #[test]
    fn subdomains_may_have_long_labels_but_no_empty_ones() {
        assert!(dns_subdomain(&"a".repeat(253)).is_empty());
        assert_eq!(dns_subdomain(&"a".repeat(254)).len(), 1);
        assert_eq!(dns_subdomain("a..b"), [SUBDOMAIN_SHAPE]);
        assert_eq!(dns_subdomain("a.b."), [SUBDOMAIN_SHAPE]);
    }

    #[test]
    fn qualified_names_are_judged_by_part() {
        assert!(qualified_name("example.com/My_name.1").is_empty());
        assert_eq!(qualified_name("/x"), ["prefix part must be non-empty"]);
        assert_eq!(qualified_name("a/b/c").len(), 1);
        assert_eq!(qualified_name("x/").len(), 2);
        assert!(qualified_name(&"n".repeat(63)).is_empty());
        assert_eq!(qualified_name(&"n".repeat(64)).len(), 1);
    }

    #[test]
    fn port_names_need_a_letter_and_at_most_15_characters() {
        assert!(port_name("http-8080-alt-a").is_empty());
        assert_eq!(
            port_name("http-8080-alt-ab"),
            ["must be no more than 15 characters"]
        );
        assert_eq!(port_name("80"), ["must contain at least one letter (a-z)"]);
        assert_eq!(port_name("a--b"), ["must not contain consecutive hyphens"]);
        assert_eq!(port_name("a-"), ["must not begin or end with a hyphen"]);
    }
}
