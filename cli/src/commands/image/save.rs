//! `layerfs save`.

use std::fs::File;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, ValueEnum};
use layerfs_image::archive::{self, SaveFormat};
use layerfs_image::compression::{Compressors, GZIP_LEVEL};
use layerfs_image::reference::Reference;
use layerfs_image::store::{Image, Store};

use crate::exit::Usage;
use crate::images;

/// Save images to an archive
///
/// The archive is loaded by docker, podman, buildah, skopeo and `layerfs load`. Its bytes depend on the images and the
/// names that were given, and on nothing else.
#[derive(Debug, Args)]
pub(crate) struct SaveArgs {
    /// The archive, if not standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Form of the archive
    #[arg(long, value_enum, default_value_t = Format::DockerArchive)]
    format: Format,
    /// Compress the archive with gzip
    #[arg(long)]
    compress: bool,
    /// Names or ids; a name without a tag means latest
    #[arg(value_name = "IMAGE", required = true)]
    images: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// docker's, which is an OCI layout too
    DockerArchive,
    /// An OCI layout
    OciArchive,
}

/// Images and the names to be saved with them; those of one image together.
fn chosen(store: &Store, names: &[String]) -> anyhow::Result<Vec<(Image, Vec<Reference>)>> {
    let mut chosen: Vec<(Image, Vec<Reference>)> = Vec::new();
    for name in names {
        let image = images::find(store, name)?;
        let reference = Reference::parse(name).ok().filter(|r| image.named.names.contains(&r.to_string()));
        match chosen.iter_mut().find(|(known, _)| known.manifest_digest == image.manifest_digest) {
            Some((_, names)) => names.extend(reference),
            None => chosen.push((image, reference.into_iter().collect())),
        }
    }
    for (_, names) in &mut chosen {
        names.sort();
        names.dedup();
    }
    Ok(chosen)
}

pub(crate) fn save(args: SaveArgs) -> anyhow::Result<ExitCode> {
    let format = match args.format {
        Format::DockerArchive => SaveFormat::Docker,
        Format::OciArchive => SaveFormat::Oci,
    };
    let output = args.output.filter(|path| path != Path::new("-"));
    if output.is_none() && std::io::stdout().is_terminal() {
        return Err(
            Usage("the archive would go to the terminal: name a file with -o, or redirect".into()).into()
        );
    }
    let store = images::open_store()?;
    let _used = store.lock_shared()?;
    let chosen = chosen(&store, &args.images)?;
    to_output(output.as_deref(), |out| {
        if args.compress {
            let compressors = Compressors::new();
            let out = compressors.gzip(out, GZIP_LEVEL);
            archive::save(&store, &chosen, format, out)?.finish().context("write the archive")?;
        } else {
            archive::save(&store, &chosen, format, out)?;
        }
        Ok(())
    })?;
    for (image, names) in &chosen {
        let id = image.id.to_string();
        let name = names.first().map_or_else(|| id.clone(), Reference::familiar);
        crate::events::image("save", &id, &name);
    }
    Ok(ExitCode::SUCCESS)
}

/// Writes to standard output, or to a file that is there only when all went well.
pub(crate) fn to_output(
    output: Option<&Path>,
    write: impl FnOnce(&mut dyn Write) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let Some(path) = output else {
        let mut out = std::io::stdout().lock();
        write(&mut out)?;
        return out.flush().context("write to standard output");
    };
    let words = || format!("write {}", path.display());
    // Devices and pipes are written as they are.
    if path.metadata().is_ok_and(|metadata| !metadata.is_file()) {
        return write(&mut File::options().write(true).open(path).with_context(words)?);
    }
    let directory = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut temporary = tempfile::Builder::new()
        .prefix(".layerfs-")
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .tempfile_in(directory)
        .with_context(words)?;
    write(temporary.as_file_mut())?;
    temporary.persist(path).with_context(words)?;
    Ok(())
}
