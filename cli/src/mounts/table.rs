//! The list of mounts as columns that fit the terminal.

use super::{Row, report};
use crate::mountinfo::printable;

const HEAD: [&str; 6] = ["TARGET", "IO", "LAYERS", "PID", "UPPER", "OPTIONS"];
/// Columns that give way when the terminal is narrow, the first one first.
const ELASTIC: [usize; 3] = [5, 4, 0];
/// An elastic column is not made narrower than this.
const NARROWEST: usize = 8;
const GAP: usize = 2;

/// Text of the list; nothing at all without mounts. `width` in columns, `None` for as wide as it gets.
pub(super) fn render(rows: &[Row], width: Option<usize>) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let mut lines: Vec<[String; 6]> = vec![HEAD.map(str::to_owned)];
    lines.extend(rows.iter().map(cells));
    let mut widths: [usize; 6] =
        std::array::from_fn(|column| lines.iter().map(|l| l[column].chars().count()).max().unwrap_or(0));
    if let Some(width) = width {
        fit(&mut widths, width);
    }
    lines.iter().map(|line| render_line(line, &widths)).collect()
}

fn cells(row: &Row) -> [String; 6] {
    let dash = || "-".to_owned();
    let report = row.report.as_ref();
    let io = match row.state {
        "ok" => report.and_then(report::io).unwrap_or("-"),
        state => state,
    };
    let layers = report.and_then(report::lowers).map(|lowers| {
        let upper = report.and_then(report::upper).is_some();
        (lowers.len() + usize::from(upper)).to_string()
    });
    [
        printable(&row.target),
        io.to_owned(),
        layers.unwrap_or_else(dash),
        report.and_then(report::pid).map_or_else(dash, |pid| pid.to_string()),
        report.and_then(report::upper).map_or_else(dash, printable),
        printable(&row.options),
    ]
}

fn fit(widths: &mut [usize; 6], width: usize) {
    for column in ELASTIC {
        let total: usize = widths.iter().sum::<usize>() + GAP * (widths.len() - 1);
        let excess = total.saturating_sub(width);
        widths[column] = widths[column].saturating_sub(excess).max(NARROWEST.min(widths[column]));
    }
}

fn render_line(cells: &[String; 6], widths: &[usize; 6]) -> String {
    let mut line = String::new();
    for (cell, &width) in cells.iter().zip(widths) {
        let length = cell.chars().count();
        if length > width {
            line.extend(cell.chars().take(width.saturating_sub(1)));
            line.push('…');
        } else {
            line.push_str(cell);
            line.extend(std::iter::repeat_n(' ', width - length));
        }
        line.extend(std::iter::repeat_n(' ', GAP));
    }
    line.truncate(line.trim_end().len());
    line.push('\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn rows() -> Vec<Row> {
        let row = |target: &str, state, report| Row {
            target: target.into(),
            state,
            source: "layerfs".into(),
            options: "rw,nodev,relatime,user_id=0,group_id=0,default_permissions,allow_other".into(),
            report,
        };
        let report = json!({ "io": "cached", "pid": 4711, "lowers": ["/a", "/b"], "upper": "/srv/upper" });
        vec![row("/mnt/one", "ok", Some(report)), row("/mnt/t\nwo", "dead", None)]
    }

    #[test]
    fn columns_line_up() {
        let text = render(&rows(), None);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(lines[0].starts_with("TARGET      IO      LAYERS  PID   UPPER       OPTIONS"), "{text}");
        assert!(lines[1].starts_with("/mnt/one    cached  3       4711  /srv/upper  rw,nodev"), "{text}");
        assert!(lines[2].starts_with("/mnt/t\\nwo  dead    -       -     -           rw,nodev"), "{text}");
        assert!(lines[1].ends_with("allow_other"), "{text}");
    }

    #[test]
    fn a_narrow_terminal_cuts_the_widest() {
        for width in [60, 80, 100] {
            let text = render(&rows(), Some(width));
            assert!(text.lines().all(|l| l.chars().count() <= width), "{width}: {text}");
        }
        assert!(render(&rows(), Some(80)).contains("/srv/upper"));
        assert_eq!(render(&[], Some(80)), "");
    }
}
