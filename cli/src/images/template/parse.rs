//! From text to nodes.

use serde_json::Value;

use super::TemplateError;

/// A piece of a template.
#[derive(Debug, Clone)]
pub(super) enum Node {
    Text(String),
    Print(Pipeline),
    If(Pipeline, Vec<Node>, Vec<Node>),
    With(Pipeline, Vec<Node>, Vec<Node>),
    Range(Pipeline, Vec<Node>, Vec<Node>),
}

/// Commands, each of which gets the result of the one before as its last argument.
#[derive(Debug, Clone)]
pub(super) struct Pipeline {
    /// Variables that are set.
    pub(super) variables: Vec<String>,
    /// `:=` and not `=`.
    pub(super) commands: Vec<Command>,
}

/// An operand alone, or a function and its arguments.
pub(super) type Command = Vec<Operand>;

#[derive(Debug, Clone)]
pub(super) enum Operand {
    Literal(Value),
    /// Of the data at hand (`.A.B`); empty for the data itself.
    Field(Vec<String>),
    /// `$x.A`; the empty name is the data as a whole.
    Variable(String, Vec<String>),
    Function(String),
    Nested(Pipeline, Vec<String>),
}

#[derive(Debug, Clone, PartialEq)]
enum Token {
    Word(String),
    /// `.A.B`, or a lone dot.
    Field(Vec<String>),
    Variable(String, Vec<String>),
    Literal(Value),
    Open,
    Close(Vec<String>),
    Pipe,
    Assign,
    Comma,
}

fn error(what: impl Into<String>) -> TemplateError {
    TemplateError::Parse(what.into())
}

/// Text and the inside of actions, spaces trimmed where `{{-` and `-}}` ask for it.
fn pieces(text: &str) -> Result<Vec<(bool, String)>, TemplateError> {
    let mut pieces: Vec<(bool, String)> = Vec::new();
    let mut rest = text;
    let mut trim_next = false;
    loop {
        let Some(at) = rest.find("{{") else {
            let text = if trim_next { rest.trim_start() } else { rest };
            pieces.push((false, text.to_owned()));
            return Ok(pieces);
        };
        let mut before = &rest[..at];
        if trim_next {
            before = before.trim_start();
        }
        rest = &rest[at + 2..];
        if rest.starts_with("- ") {
            before = before.trim_end();
            rest = &rest[1..];
        }
        pieces.push((false, before.to_owned()));
        let end = action_end(rest).ok_or_else(|| error("unclosed action"))?;
        let mut inside = &rest[..end];
        rest = &rest[end + 2..];
        trim_next = inside.ends_with(" -");
        if trim_next {
            inside = &inside[..inside.len() - 1];
        }
        let inside = inside.trim();
        if !inside.starts_with("/*") {
            pieces.push((true, inside.to_owned()));
        }
    }
}

/// Where `}}` is outside of quotes and comments.
fn action_end(text: &str) -> Option<usize> {
    let mut quote = None;
    let mut escaped = false;
    for (at, letter) in text.char_indices() {
        match (quote, letter) {
            _ if escaped => escaped = false,
            (Some('"' | '\''), '\\') => escaped = true,
            (Some(open), letter) if letter == open => quote = None,
            (Some(_), _) => {}
            (None, '"' | '`' | '\'') => quote = Some(letter),
            (None, '}') if text[at..].starts_with("}}") => return Some(at),
            (None, _) => {}
        }
    }
    None
}

pub(super) fn parse(text: &str) -> Result<Vec<Node>, TemplateError> {
    let pieces = pieces(text)?;
    let mut at = 0;
    let (nodes, end) = block(&pieces, &mut at)?;
    match end {
        None => Ok(nodes),
        Some(word) => Err(error(format!("unexpected {{{{{word}}}}}"))),
    }
}

/// Nodes up to `end`, `else...` or the end of the template.
fn block(pieces: &[(bool, String)], at: &mut usize) -> Result<(Vec<Node>, Option<String>), TemplateError> {
    let mut nodes = Vec::new();
    while let Some((is_action, text)) = pieces.get(*at) {
        *at += 1;
        if !is_action {
            if !text.is_empty() {
                nodes.push(Node::Text(text.clone()));
            }
            continue;
        }
        let (word, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
        match word {
            "end" | "else" => return Ok((nodes, Some(text.clone()))),
            "if" | "with" | "range" => nodes.push(control(word, rest, pieces, at)?),
            "define" | "template" | "block" | "break" | "continue" => {
                return Err(error(format!("{word} is not supported")));
            }
            _ => nodes.push(Node::Print(pipeline(text)?)),
        }
    }
    Ok((nodes, None))
}

fn control(
    word: &str,
    condition: &str,
    pieces: &[(bool, String)],
    at: &mut usize,
) -> Result<Node, TemplateError> {
    if condition.trim().is_empty() {
        return Err(error(format!("missing value for {word}")));
    }
    let condition = pipeline(condition)?;
    let (body, end) = block(pieces, at)?;
    let unexpected = || error(format!("unexpected EOF in {word}: no {{{{end}}}}"));
    let otherwise = match end.as_deref().map(str::trim) {
        None => return Err(unexpected()),
        Some("end") => Vec::new(),
        Some("else") => {
            let (otherwise, end) = block(pieces, at)?;
            if end.as_deref() != Some("end") {
                return Err(unexpected());
            }
            otherwise
        }
        Some(text) => {
            let inner = text.trim_start_matches("else").trim();
            let (inner_word, rest) = inner.split_once(char::is_whitespace).unwrap_or((inner, ""));
            vec![control(inner_word, rest, pieces, at)?]
        }
    };
    Ok(match word {
        "if" => Node::If(condition, body, otherwise),
        "with" => Node::With(condition, body, otherwise),
        _ => Node::Range(condition, body, otherwise),
    })
}

fn pipeline(text: &str) -> Result<Pipeline, TemplateError> {
    let tokens = tokens(text)?;
    let mut at = 0;
    let pipeline = commands(&tokens, &mut at)?;
    match tokens.get(at) {
        None => Ok(pipeline),
        Some(_) => Err(error("unexpected right paren")),
    }
}

fn commands(tokens: &[Token], at: &mut usize) -> Result<Pipeline, TemplateError> {
    let mut variables = Vec::new();
    if let Some(assign) = tokens[*at..].iter().position(|token| *token == Token::Assign) {
        for token in &tokens[*at..*at + assign] {
            match token {
                Token::Variable(name, fields) if fields.is_empty() => variables.push(name.clone()),
                Token::Comma => {}
                _ => return Err(error("only variables can be set")),
            }
        }
        *at += assign + 1;
    }
    let mut commands = Vec::new();
    let mut command: Command = Vec::new();
    loop {
        match tokens.get(*at) {
            None | Some(Token::Close(_)) => {
                if command.is_empty() {
                    return Err(error("missing value for command"));
                }
                commands.push(command);
                return Ok(Pipeline { variables, commands });
            }
            Some(Token::Pipe) => {
                if command.is_empty() {
                    return Err(error("missing value before |"));
                }
                commands.push(std::mem::take(&mut command));
            }
            Some(Token::Open) => {
                *at += 1;
                let inner = self::commands(tokens, at)?;
                let Some(Token::Close(fields)) = tokens.get(*at) else {
                    return Err(error("unclosed left paren"));
                };
                command.push(Operand::Nested(inner, fields.clone()));
            }
            Some(Token::Word(word)) => {
                if !super::functions::is_function(word) {
                    return Err(error(format!("function {word:?} not defined")));
                }
                command.push(Operand::Function(word.clone()));
            }
            Some(Token::Field(fields)) => command.push(Operand::Field(fields.clone())),
            Some(Token::Variable(name, fields)) => {
                command.push(Operand::Variable(name.clone(), fields.clone()))
            }
            Some(Token::Literal(value)) => command.push(Operand::Literal(value.clone())),
            Some(Token::Assign | Token::Comma) => return Err(error("unexpected , or := in command")),
        }
        *at += 1;
    }
}

fn tokens(text: &str) -> Result<Vec<Token>, TemplateError> {
    let mut tokens = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        match first {
            c if c.is_whitespace() => rest = rest.trim_start(),
            '|' => (tokens.push(Token::Pipe), rest = &rest[1..]).1,
            ',' => (tokens.push(Token::Comma), rest = &rest[1..]).1,
            '(' => (tokens.push(Token::Open), rest = &rest[1..]).1,
            ')' => {
                let (fields, after) = fields_of(&rest[1..]);
                tokens.push(Token::Close(fields));
                rest = after;
            }
            ':' if rest.starts_with(":=") => (tokens.push(Token::Assign), rest = &rest[2..]).1,
            '=' => (tokens.push(Token::Assign), rest = &rest[1..]).1,
            '"' => {
                let (text, after) = quoted(&rest[1..])?;
                tokens.push(Token::Literal(Value::String(text)));
                rest = after;
            }
            '`' => {
                let (raw, after) =
                    rest[1..].split_once('`').ok_or_else(|| error("unterminated raw quoted string"))?;
                tokens.push(Token::Literal(Value::String(raw.to_owned())));
                rest = after;
            }
            '.' => {
                let (fields, after) = fields_of(rest);
                if fields.is_empty() {
                    rest = &rest[1..];
                } else {
                    rest = after;
                }
                tokens.push(Token::Field(fields));
            }
            '$' => {
                let (name, after) = word(&rest[1..]);
                let (fields, after) = fields_of(after);
                tokens.push(Token::Variable(name.to_owned(), fields));
                rest = after;
            }
            c if c.is_ascii_digit() || c == '-' || c == '+' => {
                let end = rest[1..]
                    .find(|c: char| !c.is_ascii_alphanumeric() && c != '.')
                    .map_or(rest.len(), |at| at + 1);
                let number = rest[..end].trim_start_matches('+');
                let value = number
                    .parse::<i64>()
                    .map(Value::from)
                    .or_else(|_| number.parse::<f64>().map(Value::from))
                    .map_err(|_| error(format!("bad number syntax: {number:?}")))?;
                tokens.push(Token::Literal(value));
                rest = &rest[end..];
            }
            c if c.is_alphabetic() || c == '_' => {
                let (name, after) = word(rest);
                tokens.push(match name {
                    "true" => Token::Literal(Value::Bool(true)),
                    "false" => Token::Literal(Value::Bool(false)),
                    "nil" => Token::Literal(Value::Null),
                    name => Token::Word(name.to_owned()),
                });
                rest = after;
            }
            c => return Err(error(format!("unexpected {c:?} in action"))),
        }
    }
    Ok(tokens)
}

fn word(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len()))
}

/// `.A.B` at the beginning of `text`.
fn fields_of(text: &str) -> (Vec<String>, &str) {
    let mut fields = Vec::new();
    let mut rest = text;
    while let Some(after) = rest.strip_prefix('.') {
        let (name, after) = word(after);
        if name.is_empty() {
            break;
        }
        fields.push(name.to_owned());
        rest = after;
    }
    (fields, rest)
}

fn quoted(text: &str) -> Result<(String, &str), TemplateError> {
    let mut out = String::new();
    let mut letters = text.char_indices();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '"' => return Ok((out, &text[at + 1..])),
            '\\' => match letters.next().map(|(_, letter)| letter) {
                Some('n') => out.push('\n'),
                Some('t') => out.push('\t'),
                Some('r') => out.push('\r'),
                Some(other @ ('"' | '\\' | '\'')) => out.push(other),
                _ => return Err(error("unknown escape in a quoted string")),
            },
            letter => out.push(letter),
        }
    }
    Err(error("unterminated quoted string"))
}

/// The last names of the fields that are printed, in order.
pub(super) fn fields(nodes: &[Node]) -> Vec<String> {
    let mut found = Vec::new();
    for node in nodes {
        if let Node::Print(pipeline) = node {
            pipeline_fields(pipeline, &mut found);
        }
    }
    found
}

fn pipeline_fields(pipeline: &Pipeline, found: &mut Vec<String>) {
    for operand in pipeline.commands.iter().flatten() {
        match operand {
            Operand::Field(fields) => found.extend(fields.last().cloned()),
            Operand::Nested(inner, _) => pipeline_fields(inner, found),
            _ => {}
        }
    }
}
