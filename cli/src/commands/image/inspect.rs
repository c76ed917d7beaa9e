//! `layerfs inspect`, `layerfs image inspect` and `layerfs image exists`.

use std::process::ExitCode;

use clap::Args;
use layerfs_image::store::{Image, Store};
use serde_json::{Value, json};

use crate::exit;
use crate::images::{self, human, template::Template};
use crate::ui;

/// Show all that is known of images, as JSON
///
/// The document is docker's. Exit code 1 when one of the images is not there; the others are shown.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples
  layerfs inspect debian:13
  layerfs inspect -f '{{.Id}}' debian:13
  layerfs inspect -f '{{json .Config.Env}}' debian:13
  layerfs inspect -f '{{range .RootFS.Layers}}{{println .}}{{end}}' debian:13")]
pub(crate) struct ImageInspectArgs {
    /// A Go template, or `json`
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,
    /// Names or ids
    #[arg(value_name = "IMAGE", required = true)]
    images: Vec<String>,
}

/// Tell by the exit code whether an image is there: 0 or 1
#[derive(Debug, Args)]
pub(crate) struct ExistsArgs {
    /// Name or id
    #[arg(value_name = "IMAGE")]
    image: String,
}

pub(crate) fn exists(args: ExistsArgs) -> anyhow::Result<ExitCode> {
    let store = images::open_store()?;
    match store.find(&args.image) {
        Ok(_) => Ok(ExitCode::SUCCESS),
        Err(layerfs_image::Error::NoSuchImage(_)) => Ok(ExitCode::from(exit::FAILURE)),
        Err(error) => Err(error.into()),
    }
}

pub(crate) fn image_inspect(args: ImageInspectArgs) -> anyhow::Result<ExitCode> {
    let store = images::open_store()?;
    let mut documents = Vec::new();
    let mut failed = false;
    for name in &args.images {
        match images::find_whole(&store, name) {
            Ok(image) => documents.push(document(&store, &image)),
            Err(error) => {
                ui::error(&error);
                failed = true;
            }
        }
    }
    print(&documents, args.format.as_deref())?;
    Ok(ExitCode::from(if failed { exit::FAILURE } else { 0 }))
}

/// Prints documents as `inspect` does: all as one list, or each through a template.
pub(crate) fn print(documents: &[Value], format: Option<&str>) -> anyhow::Result<()> {
    let text = match format {
        None | Some("") => format!("{}\n", indented(&Value::Array(documents.to_vec()))?),
        Some("json") => format!("{}\n", serde_json::to_string(&documents)?),
        Some(format) => {
            let template = Template::document(&format.replace("\\t", "\t").replace("\\n", "\n"))?;
            let mut text = String::new();
            for document in documents {
                text.push_str(&template.render(document)?);
                text.push('\n');
            }
            text
        }
    };
    ui::print(text)?;
    Ok(())
}

/// Four spaces, as docker has it.
pub(super) fn indented(value: &Value) -> anyhow::Result<String> {
    use serde::Serialize;
    let mut out = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, formatter))?;
    Ok(String::from_utf8(out)?)
}

/// docker's document.
pub(crate) fn document(store: &Store, image: &Image) -> Value {
    let config = &image.config;
    let text = |key: &str| config.other.get(key).and_then(Value::as_str).unwrap_or_default();
    let size = store.unpacked_size(image);
    let comment = config.history.last().and_then(|step| step.comment.clone()).unwrap_or_default();
    let trees: Vec<String> = image
        .diff_ids()
        .iter()
        .rev()
        .map(|diff_id| store.layer_tree(diff_id).display().to_string())
        .collect();
    let mut run = config.config.clone();
    if let Some(run) = run.as_object_mut() {
        // docker shows these whether they are set or not.
        for key in ["Cmd", "Entrypoint", "Env", "Labels", "Volumes", "OnBuild"] {
            run.entry(key).or_insert(Value::Null);
        }
        for key in ["User", "WorkingDir"] {
            run.entry(key).or_insert_with(|| "".into());
        }
    }
    let mut document = json!({
        "Id": image.id,
        "RepoTags": image.familiar_names(),
        "RepoDigests": image.familiar_digests(),
        "Parent": "",
        "Comment": comment,
        "Created": config.created.clone().unwrap_or_default(),
        "DockerVersion": text("docker_version"),
        "Author": config.author.clone().unwrap_or_default(),
        "Config": run,
        "Architecture": config.architecture,
        "Os": config.os,
        "Size": size,
        "VirtualSize": size,
        "GraphDriver": { "Name": "layerfs", "Data": { "LowerDir": trees.join(":") } },
        "RootFS": { "Type": "layers", "Layers": image.diff_ids() },
        "Metadata": { "LastTagTime": image.named.tagged.clone().unwrap_or_else(|| "0001-01-01T00:00:00Z".into()) },
        "Descriptor": {
            "mediaType": image.media_type(),
            "digest": image.manifest_digest,
            "size": image.manifest_bytes.len(),
        },
        "Digest": image.manifest_digest,
        "History": config.history,
        "Labels": config.config.get("Labels").cloned().unwrap_or(Value::Null),
        "User": config.run_text("User").unwrap_or_default(),
        "CreatedSince": human::since(image.created()),
    });
    if let (Some(document), Some(variant)) = (document.as_object_mut(), &config.variant) {
        document.insert("Variant".into(), variant.as_str().into());
    }
    document
}
