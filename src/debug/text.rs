//! Numbers and strings for people and for files.

use std::fmt::Write;

/// `12.3 MB`.
pub fn bytes(n: u64) -> String {
    scaled(n as f64, &["B", "kB", "MB", "GB", "TB", "PB", "EB"])
}

/// A count with a metric prefix: `1.07 G`.
pub fn count(n: f64) -> String {
    scaled(n, &["", "k", "M", "G", "T", "P", "E"])
}

fn scaled(mut n: f64, units: &[&str]) -> String {
    let mut unit = 0;
    // What would be shown as 1000 is one of the next.
    while n >= 999.5 && unit + 1 < units.len() {
        n /= 1000.0;
        unit += 1;
    }
    let digits = if unit == 0 || n >= 99.95 {
        0
    } else if n >= 9.995 {
        1
    } else {
        2
    };
    format!("{n:.digits$} {}", units[unit]).trim_end().to_string()
}

/// `[2, 3]`.
pub fn shape(dims: &[usize]) -> String {
    format!("{dims:?}")
}

/// A string in JSON, with its quotes. Safe inside of `<script>` too.
pub fn json(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' | '\0'..='\u{1f}' | '\u{7f}' => {
                // Writing to a string does not fail.
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
            _ => out.push(c),
        }
    }
    out.push('"');
    out
}

/// Text in HTML, or in a quoted attribute. Control characters, which it may not have, become U+FFFD.
pub fn html(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\n' | '\t' => out.push(c),
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// A string in DOT, with its quotes. Its line breaks are kept.
pub fn dot(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            // `dot` reads labels as HTML entities.
            '&' => out.push_str("&amp;"),
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_three_digits() {
        let shown = [0, 999, 1000, 1234, 99_949, 99_950, 999_499, 999_500, 4_294_967_296].map(bytes);
        assert_eq!(
            shown,
            ["0 B", "999 B", "1.00 kB", "1.23 kB", "99.9 kB", "100 kB", "999 kB", "1.00 MB", "4.29 GB"]
        );
        assert_eq!(count(2.0 * 512f64.powi(3)), "268 M");
        assert_eq!(count(7.0), "7");
    }

    #[test]
    fn nothing_breaks_out_of_its_quotes() {
        let evil = "a\"b\\c</script><!-- & '\u{1}\n";
        assert_eq!(json(evil), r#""a\"b\\c\u003c/script\u003e\u003c!-- \u0026 '\u0001\n""#);
        assert_eq!(html(evil), "a&quot;b\\c&lt;/script&gt;&lt;!-- &amp; &#39;\u{fffd}\n");
        assert_eq!(dot(evil), "\"a\\\"b\\\\c</script><!-- &amp; '\u{fffd}\\n\"");
    }
}
