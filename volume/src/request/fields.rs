//! A line of comma-separated fields, quoted where they hold commas (RFC 4180), as docker reads `--mount`.

/// The fields; `None` when a quote is wrong.
pub(super) fn split(text: &str) -> Option<Vec<String>> {
    let mut fields = Vec::new();
    let mut rest = text.chars().peekable();
    loop {
        let mut field = String::new();
        if rest.peek() == Some(&'"') {
            rest.next();
            loop {
                match rest.next()? {
                    '"' if rest.peek() == Some(&'"') => {
                        rest.next();
                        field.push('"');
                    }
                    '"' => break,
                    other => field.push(other),
                }
            }
            if !matches!(rest.peek(), None | Some(',')) {
                return None;
            }
        } else {
            while let Some(c) = rest.next_if(|c| *c != ',') {
                if c == '"' {
                    return None;
                }
                field.push(c);
            }
        }
        fields.push(field);
        if rest.next().is_none() {
            return Some(fields);
        }
    }
}
