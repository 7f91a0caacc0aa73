//! The bytes of a request, different for each, and the check that an answer brings them back. Pure.

/// Writes the request of that number into `request`: `size` printable bytes. With `line`, the last one ends the line.
pub(super) fn fill(request: &mut Vec<u8>, number: u64, size: usize, line: bool) {
    request.clear();
    let body = if line { size.saturating_sub(1) } else { size };
    let mut state = number;
    while request.len() < body {
        state = mixed(state);
        let hex = format_hex(state);
        let room = body - request.len();
        request.extend_from_slice(&hex[..room.min(hex.len())]);
    }
    if line {
        request.push(b'\n');
    }
}

// SplitMix64: successive numbers give unrelated words.
fn mixed(state: u64) -> u64 {
    let mut z = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

fn format_hex(word: u64) -> [u8; 16] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let nibbles = word.to_be_bytes();
    std::array::from_fn(|i| {
        let byte = nibbles[i / 2];
        let nibble = if i % 2 == 0 { byte >> 4 } else { byte & 15 };
        DIGITS[usize::from(nibble)]
    })
}

/// What an answer says beside the request that it brings back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Echo<'a> {
    /// The request and before it the name of who answers.
    From(&'a str),
    /// The request alone.
    Plain,
    /// Something else.
    Other,
}

/// Judges an answer: a backend that names itself answers `name: request`.
pub(super) fn judge<'a>(answer: &'a [u8], request: &[u8]) -> Echo<'a> {
    let Some(before) = answer.strip_suffix(request) else {
        return Echo::Other;
    };
    if before.is_empty() {
        return Echo::Plain;
    }
    before
        .strip_suffix(b": ")
        .and_then(|name| std::str::from_utf8(name).ok())
        .map_or(Echo::Other, Echo::From)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(number: u64, size: usize, line: bool) -> Vec<u8> {
        let mut request = b"old".to_vec();
        fill(&mut request, number, size, line);
        request
    }

    #[test]
    fn a_request_has_its_size_and_one_line_end_at_most() {
        for size in [1, 2, 16, 17, 1000] {
            let line = filled(7, size, true);
            assert_eq!(line.len(), size);
            assert_eq!(line.iter().position(|b| *b == b'\n'), Some(size - 1));
            let plain = filled(7, size, false);
            assert_eq!(plain.len(), size);
            assert!(plain.iter().all(u8::is_ascii_hexdigit));
        }
    }

    #[test]
    fn requests_differ() {
        assert_ne!(filled(1, 64, true), filled(2, 64, true));
        assert_eq!(filled(1, 64, true), filled(1, 64, true));
    }

    #[test]
    fn an_answer_is_judged_by_what_it_brings_back() {
        assert_eq!(judge(b"web-0: abc\n", b"abc\n"), Echo::From("web-0"));
        assert_eq!(judge(b"abc\n", b"abc\n"), Echo::Plain);
        assert_eq!(judge(b"web-0: abd\n", b"abc\n"), Echo::Other);
        assert_eq!(judge(b"bc\n", b"abc\n"), Echo::Other);
        assert_eq!(judge(b"xabc\n", b"abc\n"), Echo::Other);
        assert_eq!(judge(b"\xff: abc\n", b"abc\n"), Echo::Other);
    }
}
