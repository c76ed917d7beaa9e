//! `layerfs commit` and `layerfs export`.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use layerfs_image::commit::{Base, CommitOptions, commit as make};
use layerfs_image::layer::pack_merged;

use crate::commands::container::layer::Subject;
use crate::commands::container::pause;
use crate::exit::Usage;
use crate::images;
use crate::ui;

/// Make an image of a container
///
/// What the container changed becomes one layer on those of its image. A container on a root filesystem becomes an image
/// of one layer.
#[derive(Debug, Args)]
pub(crate) struct CommitArgs {
    /// Who made the image
    #[arg(short, long, value_name = "TEXT")]
    author: Option<String>,
    /// Words about it
    #[arg(short, long, value_name = "TEXT")]
    message: Option<String>,
    /// Change the image's config by an instruction of a Dockerfile
    #[arg(short, long, value_name = "INSTRUCTION")]
    change: Vec<String>,
    /// Pause the container meanwhile
    #[arg(short, long, value_name = "true|false", default_value_t = true, default_missing_value = "true",
          num_args = 0..=1, require_equals = true, action = clap::ArgAction::Set)]
    pause: bool,
    /// Say nothing but the id
    #[arg(short, long)]
    quiet: bool,
    /// The container
    #[arg(value_name = "CONTAINER")]
    container: String,
    /// Name of the image
    #[arg(value_name = "NAME[:TAG]")]
    name: Option<String>,
}

/// Write all files of a container to an archive
#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    /// The archive, if not standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// The container
    #[arg(value_name = "CONTAINER")]
    container: String,
}

pub(crate) fn commit(args: CommitArgs) -> anyhow::Result<ExitCode> {
    let name = args.name.as_deref().map(images::parse_tag).transpose()?;
    let subject = Subject::open(&args.container)?;
    // Until the layer is made.
    let _held = if args.pause { pause::hold(&args.container)? } else { None };
    subject.flush()?;
    let base = match (&subject.image, &subject.container.config.rootfs) {
        (Some(image), _) => Base::Image(image),
        (None, Some(rootfs)) => {
            if rootfs == Path::new("/") {
                return Err(Usage(
                    "a container on / is this whole machine, /proc and all: run it on a directory, or use \
                     `layerfs diff` to see what it changed"
                        .into(),
                )
                .into());
            }
            Base::Directory(rootfs)
        }
        (None, None) => {
            let name = subject.container.config.image_name.clone();
            return Err(layerfs_image::Error::NoSuchImage(name).into());
        }
    };
    let comment = args.message.clone();
    let options = CommitOptions {
        name,
        author: args.author,
        message: args.message,
        changes: args.change,
        command: Some(subject.container.record.args.join(" ")).filter(|command| !command.is_empty()),
        omitted: subject.placeholders()?,
    };
    images::with_session(&subject.store, |session| {
        let id = make(&subject.store, session, &subject.upper(), &base, &options)
            .context("commit the container")?;
        let more = [("comment", comment.as_deref().unwrap_or_default()), ("imageID", &id.to_string())];
        crate::events::container("commit", &subject.container.config, &more);
        ui::print(format!("{id}\n"))?;
        Ok(ExitCode::SUCCESS)
    })
}

pub(crate) fn export(args: ExportArgs) -> anyhow::Result<ExitCode> {
    let output = args.output.filter(|path| path != Path::new("-"));
    if output.is_none() && std::io::stdout().is_terminal() {
        return Err(
            Usage("the archive would go to the terminal: name a file with -o, or redirect".into()).into()
        );
    }
    let subject = Subject::open(&args.container)?;
    subject.flush()?;
    let stack = &subject.stack;
    super::save::to_output(output.as_deref(), |out| {
        pack_merged(stack, out, false).context("export the container")?;
        Ok(())
    })?;
    crate::events::container("export", &subject.container.config, &[]);
    Ok(ExitCode::SUCCESS)
}
