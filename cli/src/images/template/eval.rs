//! From nodes and data to text.

use serde_json::Value;

use super::functions::{self, is_true, shown};
use super::parse::{Node, Operand, Pipeline};
use super::{Fields, TemplateError, document};

struct Scope<'a> {
    known: Fields,
    /// The data as a whole.
    root: &'a Value,
    /// Innermost last.
    variables: Vec<(String, Value)>,
}

pub(super) fn render(nodes: &[Node], data: &Value, known: Fields) -> Result<String, TemplateError> {
    let mut scope = Scope { known, root: data, variables: Vec::new() };
    let mut out = String::new();
    scope.nodes(nodes, data, &mut out)?;
    Ok(out)
}

fn error(what: impl Into<String>) -> TemplateError {
    TemplateError::Evaluate(what.into())
}

impl Scope<'_> {
    fn nodes(&mut self, nodes: &[Node], dot: &Value, out: &mut String) -> Result<(), TemplateError> {
        for node in nodes {
            match node {
                Node::Text(text) => out.push_str(text),
                Node::Print(pipeline) => {
                    let value = self.pipeline(pipeline, dot)?;
                    match pipeline.variables.first() {
                        Some(name) => self.set(name, value),
                        None => out.push_str(self.unset(pipeline, &value, dot).unwrap_or(&shown(&value))),
                    }
                }
                Node::If(condition, body, otherwise) => {
                    let value = self.pipeline(condition, dot)?;
                    self.inner(condition, &value, |scope| {
                        scope.nodes(if is_true(&value) { body } else { otherwise }, dot, out)
                    })?;
                }
                Node::With(condition, body, otherwise) => {
                    let value = self.pipeline(condition, dot)?;
                    self.inner(condition, &value, |scope| match is_true(&value) {
                        true => scope.nodes(body, &value, out),
                        false => scope.nodes(otherwise, dot, out),
                    })?;
                }
                Node::Range(over, body, otherwise) => self.range(over, body, otherwise, dot, out)?,
            }
        }
        Ok(())
    }

    /// What stands for a field of a document that has not been set.
    fn unset(&self, pipeline: &Pipeline, value: &Value, dot: &Value) -> Option<&'static str> {
        match (self.known, value, pipeline.commands.as_slice()) {
            (Fields::Document, Value::Null, [command]) => match command.as_slice() {
                [Operand::Field(fields)] if !std::ptr::eq(dot, self.root) => {
                    document::unset_in_list(fields.last()?)
                }
                [Operand::Field(fields) | Operand::Variable(_, fields)] => {
                    let (last, path) = fields.split_last()?;
                    document::unset(last).filter(|_| !document::has_any_keys(path))
                }
                _ => None,
            },
            _ => None,
        }
    }

    /// Runs with the variables of a condition, and forgets what was set inside.
    fn inner<T>(
        &mut self,
        condition: &Pipeline,
        value: &Value,
        run: impl FnOnce(&mut Self) -> Result<T, TemplateError>,
    ) -> Result<T, TemplateError> {
        let depth = self.variables.len();
        if let Some(name) = condition.variables.first() {
            self.set(name, value.clone());
        }
        let result = run(self);
        self.variables.truncate(depth);
        result
    }

    fn range(
        &mut self,
        over: &Pipeline,
        body: &[Node],
        otherwise: &[Node],
        dot: &Value,
        out: &mut String,
    ) -> Result<(), TemplateError> {
        let items: Vec<(Value, Value)> = match self.pipeline(over, dot)? {
            Value::Array(items) => {
                items.into_iter().enumerate().map(|(at, item)| (at.into(), item)).collect()
            }
            // Go goes through a map in the order of its keys.
            Value::Object(map) => {
                let mut items: Vec<(Value, Value)> =
                    map.into_iter().map(|(key, item)| (key.into(), item)).collect();
                items.sort_by(|a, b| a.0.as_str().cmp(&b.0.as_str()));
                items
            }
            Value::Null => Vec::new(),
            other => return Err(error(format!("range can't iterate over {}", shown(&other)))),
        };
        if items.is_empty() {
            return self.nodes(otherwise, dot, out);
        }
        for (key, item) in items {
            let depth = self.variables.len();
            match over.variables.as_slice() {
                [] => {}
                [name] => self.set(name, item.clone()),
                [key_name, name, ..] => {
                    self.set(key_name, key);
                    self.set(name, item.clone());
                }
            }
            self.nodes(body, &item, out)?;
            self.variables.truncate(depth);
        }
        Ok(())
    }

    fn set(&mut self, name: &str, value: Value) {
        self.variables.push((name.to_owned(), value));
    }

    fn pipeline(&mut self, pipeline: &Pipeline, dot: &Value) -> Result<Value, TemplateError> {
        let mut last: Option<Value> = None;
        for command in &pipeline.commands {
            let value = match command.split_first() {
                Some((Operand::Function(name), arguments)) => {
                    let mut values = arguments
                        .iter()
                        .map(|operand| self.operand(operand, dot))
                        .collect::<Result<Vec<_>, _>>()?;
                    values.extend(last.take());
                    functions::call(name, &values)?
                }
                // docker's one method with an argument.
                Some((Operand::Field(fields), [name]))
                    if fields.last().is_some_and(|last| last == "Label") =>
                {
                    let name = self.operand(name, dot)?;
                    label(dot, name.as_str().unwrap_or_default())
                }
                Some((operand, [])) if last.is_none() => self.operand(operand, dot)?,
                _ => return Err(error("only a function takes arguments")),
            };
            last = Some(value);
        }
        Ok(last.unwrap_or(Value::Null))
    }

    fn operand(&mut self, operand: &Operand, dot: &Value) -> Result<Value, TemplateError> {
        match operand {
            Operand::Literal(value) => Ok(value.clone()),
            Operand::Field(fields) => self.fields(dot, fields),
            Operand::Variable(name, fields) => {
                if name.is_empty() {
                    return self.fields(self.root, fields);
                }
                let found = self.variables.iter().rev().find(|(known, _)| known == name);
                let (_, value) = found.ok_or_else(|| error(format!("undefined variable \"${name}\"")))?;
                self.fields(value, fields)
            }
            Operand::Function(name) => functions::call(name, &[]),
            Operand::Nested(pipeline, fields) => {
                let value = self.pipeline(pipeline, dot)?;
                self.fields(&value, fields)
            }
        }
    }

    fn fields(&self, value: &Value, fields: &[String]) -> Result<Value, TemplateError> {
        let whole = std::ptr::eq(value, self.root);
        let mut at = value;
        for (depth, field) in fields.iter().enumerate() {
            let (path, rest) = (&fields[..depth], &fields[depth + 1..]);
            at = match at {
                Value::Object(map) => match map.get(field) {
                    Some(value) => value,
                    None if self.known == Fields::Top && depth == 0 => {
                        return Err(error(format!("can't evaluate field {field}: there is no such field")));
                    }
                    None if self.known == Fields::Document && whole && !document::has_any_keys(path) => {
                        // Go's zero of a map has no entries; there is nothing behind that of a pointer.
                        match document::unset(field) {
                            Some(_) if rest.is_empty() || document::has_any_keys(&fields[..=depth]) => {
                                return Ok(Value::Null);
                            }
                            _ => return Err(no_entry(fields, field)),
                        }
                    }
                    None => return Ok(Value::Null),
                },
                Value::Null if self.known == Fields::Document && whole && !document::has_any_keys(path) => {
                    return Err(no_entry(fields, field));
                }
                Value::Null => return Ok(Value::Null),
                other => return Err(error(format!("can't evaluate field {field} in {}", shown(other)))),
            };
        }
        Ok(at.clone())
    }
}

/// The label `name` of a row; empty where it has none. A row has its labels as one text, `a=b,c=d`.
fn label(row: &Value, name: &str) -> Value {
    let labels = row.get("Labels").and_then(Value::as_str).unwrap_or_default();
    let mut found: Option<String> = None;
    for part in labels.split(',') {
        match (part.split_once('='), &mut found) {
            (Some((own, value)), None) if own == name => found = Some(value.to_owned()),
            // A comma that belongs to the value.
            (None, Some(value)) => *value = format!("{value},{part}"),
            (Some(_), Some(_)) => break,
            _ => {}
        }
    }
    found.unwrap_or_default().into()
}

/// docker's words.
fn no_entry(fields: &[String], field: &str) -> TemplateError {
    error(format!("executing \"\" at <.{}>: map has no entry for key {field:?}", fields.join(".")))
}
