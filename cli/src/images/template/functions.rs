//! The functions of templates.

use std::cmp::Ordering;

use serde_json::Value;

use super::TemplateError;

const NAMES: [&str; 25] = [
    "and", "or", "not", "eq", "ne", "lt", "le", "gt", "ge", "index", "slice", "len", "print", "printf",
    "println", "json", "join", "split", "upper", "lower", "title", "pad", "truncate", "html", "urlquery",
];

pub(super) fn is_function(name: &str) -> bool {
    NAMES.contains(&name) && !matches!(name, "html" | "urlquery")
}

fn error(what: impl Into<String>) -> TemplateError {
    TemplateError::Evaluate(what.into())
}

pub(super) fn call(name: &str, arguments: &[Value]) -> Result<Value, TemplateError> {
    let wrong = || error(format!("wrong arguments for {name}"));
    let text = |at: usize| arguments.get(at).and_then(Value::as_str).ok_or_else(wrong);
    let number = |at: usize| {
        let number = arguments.get(at).and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok());
        number.ok_or_else(wrong)
    };
    let first = arguments.first();
    Ok(match name {
        "json" => {
            Value::String(serde_json::to_string(first.ok_or_else(wrong)?).map_err(|e| error(e.to_string()))?)
        }
        "join" => {
            let items = first.and_then(Value::as_array).ok_or_else(wrong)?;
            items.iter().map(shown).collect::<Vec<_>>().join(text(1)?).into()
        }
        "split" => text(0)?.split(text(1)?).map(str::to_owned).collect::<Vec<_>>().into(),
        "upper" => text(0)?.to_uppercase().into(),
        "lower" => text(0)?.to_lowercase().into(),
        "title" => title(text(0)?).into(),
        "pad" => match text(0)? {
            "" => Value::String(String::new()),
            text => format!("{}{text}{}", " ".repeat(number(1)?), " ".repeat(number(2)?)).into(),
        },
        "truncate" => text(0)?.chars().take(number(1)?).collect::<String>().into(),
        "len" => match first.ok_or_else(wrong)? {
            Value::String(text) => text.len().into(),
            Value::Array(items) => items.len().into(),
            Value::Object(map) => map.len().into(),
            Value::Null => 0.into(),
            _ => return Err(wrong()),
        },
        "index" => {
            let mut at = first.ok_or_else(wrong)?.clone();
            for key in &arguments[1..] {
                at = match (&at, key) {
                    (Value::Object(map), Value::String(key)) => {
                        map.get(key).cloned().unwrap_or(Value::String(String::new()))
                    }
                    (Value::Array(items), key) => {
                        let place = key.as_u64().and_then(|n| usize::try_from(n).ok()).ok_or_else(wrong)?;
                        items
                            .get(place)
                            .cloned()
                            .ok_or_else(|| error(format!("index out of range: {place}")))?
                    }
                    (Value::Null, _) => Value::Null,
                    _ => return Err(wrong()),
                };
            }
            at
        }
        "slice" => match first.ok_or_else(wrong)? {
            Value::String(text) => {
                let end = if arguments.len() > 2 { number(2)? } else { text.len() };
                let start = if arguments.len() > 1 { number(1)? } else { 0 };
                text.get(start..end).ok_or_else(|| error("slice: index out of range"))?.into()
            }
            Value::Array(items) => {
                let end = if arguments.len() > 2 { number(2)? } else { items.len() };
                let start = if arguments.len() > 1 { number(1)? } else { 0 };
                items.get(start..end).ok_or_else(|| error("slice: index out of range"))?.to_vec().into()
            }
            _ => return Err(wrong()),
        },
        "print" => arguments.iter().map(shown).collect::<String>().into(),
        "println" => format!("{}\n", arguments.iter().map(shown).collect::<Vec<_>>().join(" ")).into(),
        "printf" => printf(text(0)?, &arguments[1..]).into(),
        "not" => (!is_true(first.ok_or_else(wrong)?)).into(),
        "and" => {
            let false_one = arguments.iter().find(|value| !is_true(value));
            false_one.or(arguments.last()).cloned().ok_or_else(wrong)?
        }
        "or" => {
            let true_one = arguments.iter().find(|value| is_true(value));
            true_one.or(arguments.last()).cloned().ok_or_else(wrong)?
        }
        "eq" => {
            let first = first.ok_or_else(wrong)?;
            let others = &arguments[1..];
            if others.is_empty() {
                return Err(wrong());
            }
            others.iter().any(|other| equal(first, other)).into()
        }
        "ne" | "lt" | "le" | "gt" | "ge" => {
            let [a, b] = arguments else { return Err(wrong()) };
            if name == "ne" {
                return Ok((!equal(a, b)).into());
            }
            let order =
                order(a, b).ok_or_else(|| error(format!("{name}: incompatible types for comparison")))?;
            match name {
                "lt" => order == Ordering::Less,
                "le" => order != Ordering::Greater,
                "gt" => order == Ordering::Greater,
                _ => order != Ordering::Less,
            }
            .into()
        }
        _ => return Err(error(format!("function {name:?} not defined"))),
    })
}

fn equal(a: &Value, b: &Value) -> bool {
    a == b || order(a, b) == Some(Ordering::Equal)
}

fn order(a: &Value, b: &Value) -> Option<Ordering> {
    match (a, b) {
        (Value::String(a), Value::String(b)) => Some(a.cmp(b)),
        (Value::Number(a), Value::Number(b)) => match (a.as_i64(), b.as_i64()) {
            (Some(a), Some(b)) => Some(a.cmp(&b)),
            _ => a.as_f64()?.partial_cmp(&b.as_f64()?),
        },
        _ => None,
    }
}

pub(super) fn is_true(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(value) => *value,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(map) => !map.is_empty(),
    }
}

/// As Go's `%v` shows it.
pub(super) fn shown(value: &Value) -> String {
    match value {
        Value::Null => "<no value>".to_owned(),
        Value::Bool(value) => value.to_string(),
        Value::Number(number) => number.to_string(),
        Value::String(text) => text.clone(),
        Value::Array(items) => format!("[{}]", items.iter().map(shown).collect::<Vec<_>>().join(" ")),
        Value::Object(map) => {
            let mut items: Vec<String> =
                map.iter().map(|(key, value)| format!("{key}:{}", shown(value))).collect();
            items.sort();
            format!("map[{}]", items.join(" "))
        }
    }
}

fn title(text: &str) -> String {
    let mut out = String::new();
    let mut begins = true;
    for letter in text.chars() {
        if begins {
            out.extend(letter.to_uppercase());
        } else {
            out.push(letter);
        }
        begins = letter.is_whitespace();
    }
    out
}

/// `%v %s %d %q %t %x %%` with flags `-` and `0` and a width.
fn printf(format: &str, arguments: &[Value]) -> String {
    let mut out = String::new();
    let mut arguments = arguments.iter();
    let mut letters = format.chars().peekable();
    while let Some(letter) = letters.next() {
        if letter != '%' {
            out.push(letter);
            continue;
        }
        let (mut left, mut zero, mut width) = (false, false, 0_usize);
        while let Some(flag) = letters.next_if(|c| matches!(c, '-' | '0' | '+' | '#')) {
            left |= flag == '-';
            zero |= flag == '0';
        }
        while let Some(digit) = letters.next_if(char::is_ascii_digit) {
            width = (width * 10 + digit.to_digit(10).unwrap_or(0) as usize).min(4096);
        }
        let Some(verb) = letters.next() else { return out + "%!(NOVERB)" };
        if verb == '%' {
            out.push('%');
            continue;
        }
        let Some(value) = arguments.next() else {
            out.push_str(&format!("%!{verb}(MISSING)"));
            continue;
        };
        let text = match verb {
            'q' => format!("{:?}", shown(value)),
            'x' => value.as_i64().map_or_else(
                || shown(value).bytes().map(|byte| format!("{byte:02x}")).collect(),
                |number| format!("{number:x}"),
            ),
            _ => shown(value),
        };
        let fill = width.saturating_sub(text.chars().count());
        match (left, zero) {
            (true, _) => out.push_str(&format!("{text}{}", " ".repeat(fill))),
            (false, true) => out.push_str(&format!("{}{text}", "0".repeat(fill))),
            (false, false) => out.push_str(&format!("{}{text}", " ".repeat(fill))),
        }
    }
    out
}
