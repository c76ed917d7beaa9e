//! Lists: a table by default, `--format` with docker's forms (`json`, `table TEMPLATE`, `TEMPLATE`).

use anyhow::Context;
use serde_json::Value;
use unicode_width::UnicodeWidthStr;

use super::template::Template;
use crate::ui;
use crate::ui::visible::visible;

/// A column: its header, and the field it shows.
pub(crate) type Column = (&'static str, &'static str);

/// Prints `rows`, whose fields are texts or values, in the form that `format` names.
pub(crate) fn print(
    rows: &[Value],
    columns: &[Column],
    headers: &[Column],
    format: Option<&str>,
) -> anyhow::Result<bool> {
    let text = match format {
        None | Some("" | "table") => table(rows, columns),
        Some("json") => {
            let mut text = String::new();
            for row in rows {
                text.push_str(&serde_json::to_string(row)?);
                text.push('\n');
            }
            text
        }
        Some(format) => match format.strip_prefix("table ") {
            Some(template) => {
                let template = template.replace("\\t", "\t").replace("\\n", "\n");
                let parsed = Template::strict(&template)?;
                let header = |field: &String| {
                    let known = headers.iter().chain(columns).find(|(_, name)| name == field);
                    known.map_or_else(|| field.to_uppercase(), |(header, _)| (*header).to_owned())
                };
                let mut lines = vec![parsed.fields().iter().map(header).collect::<Vec<_>>()];
                for row in rows {
                    lines.push(parsed.render(row)?.split('\t').map(str::to_owned).collect());
                }
                aligned(&lines)
            }
            None => {
                let parsed = Template::strict(&format.replace("\\t", "\t").replace("\\n", "\n"))?;
                let mut text = String::new();
                for row in rows {
                    text.push_str(&parsed.render(row)?);
                    text.push('\n');
                }
                text
            }
        },
    };
    ui::print(text).context("print the list")
}

fn table(rows: &[Value], columns: &[Column]) -> String {
    let mut lines = vec![columns.iter().map(|(header, _)| (*header).to_owned()).collect::<Vec<_>>()];
    for row in rows {
        let cell = |(_, field): &Column| match &row[*field] {
            Value::String(text) => text.clone(),
            Value::Null => String::new(),
            other => other.to_string(),
        };
        lines.push(columns.iter().map(cell).collect());
    }
    aligned(&lines)
}

/// Columns three spaces apart; the last is not filled.
fn aligned(lines: &[Vec<String>]) -> String {
    let shown = |cell: &String| visible(cell).into_owned();
    let lines: Vec<Vec<String>> = lines.iter().map(|line| line.iter().map(shown).collect()).collect();
    let count = lines.iter().map(Vec::len).max().unwrap_or(0);
    let width = |at: usize| lines.iter().filter_map(|l| l.get(at)).map(|c| c.width()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..count).map(width).collect();
    let mut text = String::new();
    for line in &lines {
        for (at, cell) in line.iter().enumerate() {
            text.push_str(cell);
            if at + 1 < line.len() {
                let fill = widths[at] + 3 - cell.width();
                text.extend(std::iter::repeat_n(' ', fill));
            }
        }
        while text.ends_with(' ') {
            text.pop();
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn columns_are_aligned() {
        let rows = [json!({ "A": "long name", "B": "x" }), json!({ "A": "é", "B": "yy" })];
        let wide = [json!({ "A": "日本", "B": "x" }), json!({ "A": "abcd", "B": "y" })];
        assert_eq!(table(&wide, &[("ONE", "A"), ("TWO", "B")]), "ONE    TWO\n日本   x\nabcd   y\n");
        assert_eq!(
            table(&rows, &[("ONE", "A"), ("TWO", "B")]),
            "ONE         TWO\nlong name   x\né           yy\n"
        );
    }
}
