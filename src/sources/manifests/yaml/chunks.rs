//! Where one document of a YAML file ends and the next begins.

/// Cuts `text` before each `---` at the start of a line: YAML allows it nowhere else, not even in quotes or block
/// texts (YAML 1.2.2, section 9.1.2). Gives the number of the first line of each piece.
pub(super) fn chunks(text: &str) -> Vec<(u32, &str)> {
    let mut found = Vec::new();
    let (mut start, mut start_line) = (0, 1);
    let mut offset = 0;
    for (line, number) in text.split_inclusive('\n').zip(1_u32..) {
        if is_marker(line) && offset > start {
            found.push((start_line, &text[start..offset]));
            (start, start_line) = (offset, number);
        }
        offset += line.len();
    }
    found.push((start_line, &text[start..]));
    found.retain(|(_, chunk)| has_content(chunk));
    found
}

fn is_marker(line: &str) -> bool {
    line.strip_prefix("---")
        .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
}

/// Whether there is more than blanks, comments and directives, which come before a `---`.
fn has_content(chunk: &str) -> bool {
    chunk.lines().any(|line| {
        let bare = line.trim();
        !bare.is_empty() && !bare.starts_with('#') && !line.starts_with('%')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markers_start_a_piece_and_keep_their_line() {
        assert_eq!(
            chunks("a\n---\nb\n--- c\n"),
            [(1, "a\n"), (2, "---\nb\n"), (4, "--- c\n")]
        );
        assert_eq!(chunks("---\r\na\r\n---"), [(1, "---\r\na\r\n"), (3, "---")]);
        assert_eq!(chunks("----\n---a\n ---\n"), [(1, "----\n---a\n ---\n")]);
    }

    #[test]
    fn pieces_without_content_are_left_out() {
        assert_eq!(chunks("%YAML 1.1\n# c\n\n---\na"), [(4, "---\na")]);
        assert_eq!(chunks(""), []);
    }
}
