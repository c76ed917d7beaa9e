//! `layerfs load` and `layerfs import`.

use std::fs::File;
use std::io::{IsTerminal, Read};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use layerfs_image::archive::{self, ImportOptions, Source};

use crate::commands::registry::{self, RegistryArgs};
use crate::exit::Usage;
use crate::images;
use crate::ui;

/// Load images from an archive
///
/// Takes what docker, podman, buildah and skopeo save: docker-archive (old and new form) and oci-archive, compressed
/// or not, with one image or several; also a directory with an OCI layout.
#[derive(Debug, Args)]
pub(crate) struct LoadArgs {
    /// The archive, if not standard input
    #[arg(short, long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// Say nothing of what was loaded
    #[arg(short, long)]
    quiet: bool,
}

/// Make an image of the archive of a root filesystem
///
/// The archive is a tar, compressed by gzip, zstd, bzip2, xz or not at all. It becomes the one layer of the image. Prints
/// the image's id.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples
  layerfs import root.tar.xz mine:1
  layerfs import https://example.com/root.tar.gz mine:1
  mmdebstrap stable - | layerfs import -c 'CMD [\"/bin/bash\"]' - debian:mine")]
pub(crate) struct ImportArgs {
    /// Change the image's config by an instruction of a Dockerfile (CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, ONBUILD,
    /// STOPSIGNAL, USER, VOLUME, WORKDIR)
    #[arg(short, long, value_name = "INSTRUCTION")]
    change: Vec<String>,
    /// Words about the image, for its history
    #[arg(short, long, value_name = "TEXT")]
    message: Option<String>,
    /// Platform of the image, if not this machine's
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    platform: Option<String>,
    #[command(flatten)]
    registry: RegistryArgs,
    /// The archive: a file, a URL (http or https), or - for standard input
    #[arg(value_name = "FILE|URL|-", help_heading = None)]
    file: PathBuf,
    /// Name of the image
    #[arg(value_name = "NAME[:TAG]", help_heading = None)]
    name: Option<String>,
}

/// Standard input as a file of its own.
fn stdin() -> anyhow::Result<File> {
    if std::io::stdin().is_terminal() {
        return Err(
            Usage("standard input is a terminal: name an archive with -i, or redirect one".into()).into()
        );
    }
    Ok(File::from(std::io::stdin().as_fd().try_clone_to_owned().context("read standard input")?))
}

pub(crate) fn load(args: LoadArgs) -> anyhow::Result<ExitCode> {
    let input = match &args.input {
        Some(path) if path != Path::new("-") => None,
        _ => Some(stdin()?),
    };
    let store = images::open_store()?;
    images::with_session(&store, |session| {
        let source = match (input, &args.input) {
            (None, Some(path)) => Source::open(path, session.path()),
            (Some(file), _) => Source::from_file(file, session.path()),
            (None, None) => return Err(Usage("no archive".into()).into()),
        }?;
        for loaded in archive::load(&store, session, &source).context("load the archive")? {
            for warning in loaded.warnings.iter().take(if args.quiet { 0 } else { 10 }) {
                ui::warn(warning);
            }
            let id = loaded.id.to_string();
            crate::events::image("load", &id, loaded.names.first().unwrap_or(&id));
            if loaded.names.is_empty() {
                ui::print(format!("Loaded image ID: {}\n", loaded.id))?;
            }
            for name in &loaded.names {
                ui::print(format!("Loaded image: {name}\n"))?;
            }
        }
        Ok(ExitCode::SUCCESS)
    })
}

pub(crate) fn import(args: ImportArgs) -> anyhow::Result<ExitCode> {
    let name = args.name.as_deref().map(images::parse_tag).transpose()?;
    let text = args.file.to_string_lossy();
    let is_url = text.starts_with("http://") || text.starts_with("https://");
    let reader: Box<dyn Read> = match args.file.as_path() {
        _ if is_url => Box::new(args.registry.client()?.download(&text).map_err(registry::hinted)?),
        path if path == Path::new("-") => Box::new(stdin()?),
        path => Box::new(File::open(path).with_context(|| format!("open {}", path.display()))?),
    };
    let options = ImportOptions {
        name,
        message: args.message,
        changes: args.change,
        from: text.into_owned(),
        platform: args.platform,
    };
    let store = images::open_store()?;
    images::with_session(&store, |session| {
        let id = archive::import(&store, session, reader, &options).context("import the archive")?;
        ui::print(format!("{id}\n"))?;
        crate::events::image("import", &id.to_string(), &id.to_string());
        Ok(ExitCode::SUCCESS)
    })
}
