//! What `nft -s list table` says of our table: its elements, and everything else. Pure.
//!
//! Elements are compared with what they should be. The rest is compared with what was listed right after it was
//! loaded, because every version of `nft` words rules in its own way.

use std::collections::BTreeMap;

/// A listing taken apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Listing {
    /// The listing without elements, with single blanks.
    pub(super) skeleton: String,
    /// Elements by the name of their set: key → value, which is empty in a set.
    pub(super) elements: BTreeMap<String, BTreeMap<String, String>>,
}

/// Takes a listing apart. Whatever it cannot make sense of stays in the skeleton.
pub(super) fn parse_listing(text: &str) -> Listing {
    let mut listing = Listing::default();
    let mut rest = text;
    let mut skeleton = String::new();
    while let Some(start) = rest.find(OPENING) {
        let (before, tail) = rest.split_at(start);
        let Some((body, after)) = tail[OPENING.len()..].split_once('}') else {
            break;
        };
        skeleton.push_str(before);
        if let Some(set) = last_set(&skeleton) {
            listing
                .elements
                .entry(set)
                .or_default()
                .extend(parse_elements(body));
        }
        rest = after;
    }
    skeleton.push_str(rest);
    listing.skeleton = single_blanks(&skeleton);
    listing
}

const OPENING: &str = "elements = {";

// The set whose block is open at the end of `text`.
fn last_set(text: &str) -> Option<String> {
    let mut headers = text.lines().rev().filter_map(|line| {
        let mut words = line.split_whitespace();
        let kind = words.next()?;
        let name = words.next()?;
        (matches!(kind, "set" | "map") && words.next() == Some("{")).then_some(name)
    });
    headers.next().map(str::to_owned)
}

fn parse_elements(body: &str) -> impl Iterator<Item = (String, String)> {
    let elements = body.split(',').map(single_blanks);
    elements
        .filter(|element| !element.is_empty())
        .map(|element| match element.split_once(" : ") {
            Some((key, value)) => (key.to_owned(), value.to_owned()),
            None => (element, String::new()),
        })
}

fn single_blanks(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTED: &str = "table ip viaduct {
\tmap redirects {
\t\ttype ipv4_addr . inet_proto . inet_service : inet_service
\t\telements = { 10.96.0.1 . udp . 53 : 40002,
\t\t\t     10.96.0.1 . tcp . 80 : 40001 }
\t}

\tset pods {
\t\ttype ipv4_addr
\t\tflags interval
\t}

\tset guarded {
\t\ttype inet_service
\t\telements = { 40002 }
\t}

\tchain guard {
\t\tudp dport @guarded drop
\t}
}
";

    #[test]
    fn elements_are_found_by_their_set() {
        let listing = parse_listing(LISTED);
        let redirects = &listing.elements["redirects"];
        assert_eq!(redirects["10.96.0.1 . udp . 53"], "40002");
        assert_eq!(redirects["10.96.0.1 . tcp . 80"], "40001");
        assert_eq!(listing.elements["guarded"]["40002"], "");
        assert!(!listing.elements.contains_key("pods"));
    }

    #[test]
    fn the_skeleton_changes_with_rules_and_not_with_elements() {
        let listed = parse_listing(LISTED).skeleton;
        let fewer = LISTED.replace("10.96.0.1 . udp . 53 : 40002,\n", "");
        assert_eq!(parse_listing(&fewer).skeleton, listed);
        let other = LISTED.replace("udp dport @guarded drop", "");
        assert_ne!(parse_listing(&other).skeleton, listed);
    }

    #[test]
    fn a_cut_listing_is_no_panic_and_differs() {
        let whole = parse_listing(LISTED);
        for end in 0..LISTED.len() - 2 {
            assert_ne!(parse_listing(&LISTED[..end]), whole, "cut at {end}");
        }
    }
}
