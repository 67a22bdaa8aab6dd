//! Text from sources that nobody controls, such as logs and messages of other programs, made fit for a status: valid
//! UTF-8 without control characters.

use std::borrow::Cow;

/// Replaces what a terminal or a parser might execute instead of display: control characters except newline and tab, and
/// the noncharacters U+FFFE and U+FFFF. Each becomes U+FFFD. A carriage return, with which programs redraw a line,
/// becomes a newline.
#[must_use]
pub fn printable(text: &str) -> Cow<'_, str> {
    if !text.contains(is_unprintable) {
        return Cow::Borrowed(text);
    }
    let text = text.replace("\r\n", "\n");
    Cow::Owned(
        text.chars()
            .map(|c| match c {
                '\r' => '\n',
                c if is_unprintable(c) => char::REPLACEMENT_CHARACTER,
                c => c,
            })
            .collect(),
    )
}

fn is_unprintable(c: char) -> bool {
    (c.is_control() && c != '\n' && c != '\t') || matches!(c, '\u{FFFE}' | '\u{FFFF}')
}

/// The last `max` bytes as printable text. Bytes that are not UTF-8 become U+FFFD, also encoded surrogates, and a character
/// that the limit cuts in two is left out. The result has at most `max` characters.
#[must_use]
pub fn tail(bytes: &[u8], max: usize) -> String {
    let cut = bytes.len() > max;
    let mut rest = &bytes[bytes.len().saturating_sub(max)..];
    let mut skipped = 0;
    while cut
        && skipped < 3
        && let [0x80..=0xBF, after @ ..] = rest
    {
        rest = after;
        skipped += 1;
    }
    printable(&String::from_utf8_lossy(rest)).into_owned()
}

/// Truncates a text to `max` bytes at the boundary of a character, and marks it with an ellipsis if anything is missing.
pub(crate) fn truncate(text: &mut String, max: usize) {
    if text.len() > max {
        text.truncate(text.floor_char_boundary(max));
        text.push('…');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tail_is_text_whatever_the_bytes_are() {
        assert_eq!(tail(b"epoch 1 \xFF\xFE\n", 4096), "epoch 1 \u{FFFD}\u{FFFD}\n");
        assert_eq!(
            tail(b"\xED\xA0\x80", 4096),
            "\u{FFFD}\u{FFFD}\u{FFFD}",
            "a lone surrogate"
        );
        assert_eq!(
            tail("10%\r20%\r\ndone\t\u{1b}[0m\0\u{9b}\u{FFFE}".as_bytes(), 4096),
            "10%\n20%\ndone\t\u{FFFD}[0m\u{FFFD}\u{FFFD}\u{FFFD}"
        );
        assert_eq!(tail("a█b".as_bytes(), 3), "b", "the limit cuts a character");
        assert_eq!(tail("a█b".as_bytes(), 4), "█b");
        assert_eq!(tail(b"", 4), "");
        for bytes in [vec![0xFF; 9000], vec![0x80; 9000], "█".repeat(3000).into_bytes()] {
            assert!(tail(&bytes, 4096).chars().count() <= 4096);
        }
    }

    #[test]
    fn printable_text_is_not_copied() {
        assert!(matches!(
            printable("0/1 nodes are available:\n\t█"),
            Cow::Borrowed(_)
        ));
    }
}
