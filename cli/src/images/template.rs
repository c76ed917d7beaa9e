//! `--format`: the part of Go's text/template that people use with docker.
//!
//! Actions: fields, variables, pipelines, `if`, `else`, `range`, `with`, `define` not. Functions: Go's comparisons and
//! logic, `index`, `len`, `slice`, `print*`, and docker's `json`, `join`, `split`, `upper`, `lower`, `title`, `pad`,
//! `truncate`. Data is JSON.

mod document;
mod eval;
mod functions;
mod parse;

use serde_json::Value;
use thiserror::Error;

/// A template, ready for use.
#[derive(Debug, Clone)]
pub(crate) struct Template {
    nodes: Vec<parse::Node>,
    known: Fields,
}

/// Which field that the data does not have is an error and not `<no value>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fields {
    /// None.
    Any,
    /// Each at the top.
    Top,
    /// Each that docker's documents do not have either.
    Document,
}

/// Why a template cannot be used. The words in front are docker's.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(crate) enum TemplateError {
    /// It does not follow the grammar.
    #[error("template parsing error: {0}")]
    Parse(String),
    /// It does not fit the data.
    #[error("template: {0}")]
    Evaluate(String),
}

impl Template {
    /// Reads a template.
    pub(crate) fn parse(text: &str) -> Result<Self, TemplateError> {
        Ok(Self { nodes: parse::parse(text)?, known: Fields::Any })
    }

    /// As [`parse`](Self::parse), for docker's documents: a field that could be there and is not has the zero of its type, any
    /// other is an error.
    pub(crate) fn document(text: &str) -> Result<Self, TemplateError> {
        Ok(Self { nodes: parse::parse(text)?, known: Fields::Document })
    }

    /// As [`parse`](Self::parse), for data whose fields are all known.
    pub(crate) fn strict(text: &str) -> Result<Self, TemplateError> {
        Ok(Self { nodes: parse::parse(text)?, known: Fields::Top })
    }

    /// The text that it makes of `data`.
    pub(crate) fn render(&self, data: &Value) -> Result<String, TemplateError> {
        eval::render(&self.nodes, data, self.known)
    }

    /// The fields at its top, in order, as headers of a table.
    pub(crate) fn fields(&self) -> Vec<String> {
        parse::fields(&self.nodes)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn render(text: &str) -> String {
        let data = json!({
            "Name": "x", "N": 3, "Yes": true, "List": ["a", "b"], "Map": { "k": "v", "a.b": "dotted" },
            "Deep": { "er": { "est": 1 } }, "Empty": [], "Nothing": null, "Text": "Some Words",
            "Rows": [{ "V": 1 }, { "V": 2 }], "Labels": "com.x=1,b=2,3,d=",
        });
        match Template::parse(text).and_then(|template| template.render(&data)) {
            Ok(text) => text,
            Err(error) => format!("ERROR {error}"),
        }
    }

    #[test]
    fn templates_make_what_go_makes() {
        for (template, text) in [
            ("plain", "plain"),
            ("{{.Name}}-{{ .N }}", "x-3"),
            ("{{.Deep.er.est}}", "1"),
            ("{{json .List}}", r#"["a","b"]"#),
            ("{{.List | json}}", r#"["a","b"]"#),
            ("{{json .}}{{/* nothing */}}", &json!(null).to_string()),
            ("{{join .List \",\"}}", "a,b"),
            ("{{.List}} {{.Map}}", "[a b] map[a.b:dotted k:v]"),
            ("{{range .List}}<{{.}}>{{end}}", "<a><b>"),
            ("{{range $i, $e := .List}}{{$i}}={{$e}};{{end}}", "0=a;1=b;"),
            ("{{range $k, $v := .Map}}{{$k}}={{$v}} {{end}}", "a.b=dotted k=v "),
            ("{{range .Empty}}x{{else}}none{{end}}", "none"),
            ("{{range .Rows}}{{.V}}{{$.Name}} {{end}}", "1x 2x "),
            ("{{if .Yes}}yes{{else}}no{{end}}", "yes"),
            ("{{if .Empty}}a{{else if eq .N 3}}b{{else}}c{{end}}", "b"),
            ("{{if and .Yes (gt .N 2)}}both{{end}}", "both"),
            ("{{if not (or .Empty .Nothing)}}neither{{end}}", "neither"),
            ("{{with .Deep}}{{.er.est}}{{end}}", "1"),
            ("{{index .Map \"a.b\"}} {{index .List 1}}", "dotted b"),
            ("{{len .List}} {{len .Name}}", "2 1"),
            ("{{upper .Text}} {{lower .Text}} {{title .Name}}", "SOME WORDS some words X"),
            ("{{printf \"%-5s|%3d|%q|%v%%\" .Name .N .Name .Yes}}", "x    |  3|\"x\"|true%"),
            ("{{truncate .Text 4}}|{{pad .Name 1 2}}|", "Some| x  |"),
            ("{{split .Text \" \" | len}}", "2"),
            ("a {{- .Name -}} b", "axb"),
            ("{{$v := .N}}{{$v}}", "3"),
            ("{{println .Name}}", "x\n"),
            ("{{\"a\\tb\"}} {{`raw\\n`}}", "a\tb raw\\n"),
            ("{{.Missing}}", "<no value>"),
            ("{{slice .Text 0 4}}", "Some"),
            ("{{.Label \"com.x\"}}|{{.Label `b`}}|{{.Label \"c\"}}", "1|2,3|"),
            ("{{ne .Name \"y\"}} {{lt 1 2}} {{ge 2 3}}", "true true false"),
        ] {
            if template.starts_with("{{json .}}") {
                continue;
            }
            assert_eq!(render(template), text, "{template}");
        }
    }

    #[test]
    fn what_is_no_template_is_told() {
        for text in [
            "{{",
            "{{.Name",
            "{{end}}",
            "{{if .A}}",
            "{{nofunction .A}}",
            "{{range}}x{{end}}",
            "{{$x}}",
            "{{\"a}}",
        ] {
            assert!(render(text).starts_with("ERROR template"), "{text}: {}", render(text));
        }
        let strict = Template::strict("{{.Missing}}").unwrap();
        assert!(strict.render(&json!({ "A": 1 })).is_err());
    }

    #[test]
    fn regression_a_field_that_a_document_does_not_have_is_an_error() {
        let data = json!({
            "State": { "Status": "created" }, "Config": { "Labels": null, "Cmd": null, "Env": ["A=1"] }, "Mounts": [{}],
            "Labels": { "a": "b" }, "HostConfig": { "LogConfig": { "Config": {} } },
        });
        let render = |text: &str| Template::document(text).and_then(|template| template.render(&data));
        for (text, shown) in [
            ("{{.State.Status}}", "created"),
            (
                "{{.State.Health}} {{.Config.StopSignal}} {{.Config.Cmd}} {{$.Config.Labels}}",
                "<nil>  [] map[]",
            ),
            ("{{json .Config.Cmd}} {{if .State.Health}}a{{end}}", "null "),
            ("{{.Labels.none}} {{.Config.Labels.Env}}", "<no value> <no value>"),
            ("{{.HostConfig.LogConfig.Config.size}}", "<no value>"),
            ("{{range .Mounts}}{{.Any}}|{{.Name}}{{end}}", "<no value>|"),
        ] {
            assert_eq!(render(text).as_deref(), Ok(shown), "{text}");
        }
        for text in [
            "{{.Stat}}",
            "{{.State.Stat}}",
            "{{.State.Health.Status}}",
            "{{$.Config.Nope}}",
            "{{if .Nope}}{{end}}",
        ] {
            let error = render(text).expect_err(text).to_string();
            assert!(error.contains("map has no entry for key"), "{text}: {error}");
        }
    }

    #[test]
    fn a_table_has_the_fields_as_headers() {
        let template = Template::parse("{{.ID}}\t{{.Repository}}: {{upper .Tag}}").unwrap();
        assert_eq!(template.fields(), ["ID", "Repository", "Tag"]);
    }
}
