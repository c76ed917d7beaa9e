//! `layerfs volume create`.

use std::collections::BTreeMap;
use std::process::ExitCode;

use clap::Args;
use layerfs_volume::NewVolume;

use crate::commands::network::labels;
use crate::exit::Usage;
use crate::ui;

/// Create a volume
#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// Kind of volume: local
    #[arg(short, long, value_name = "DRIVER", default_value = "local")]
    driver: String,
    /// What it is on: type=TYPE, device=DEVICE, o=OPTIONS, as mount(8) has them [default: a directory]
    #[arg(short, long, value_name = "NAME=VALUE")]
    opt: Vec<String>,
    /// Label
    #[arg(long, value_name = "NAME[=VALUE]")]
    label: Vec<String>,
    /// The name, as an option
    #[arg(long, value_name = "NAME", hide = true, conflicts_with = "volume")]
    name: Option<String>,
    /// Name [default: one is made up]
    #[arg(value_name = "VOLUME")]
    volume: Option<String>,
}

pub(crate) fn create(args: CreateArgs) -> anyhow::Result<ExitCode> {
    let mut options = BTreeMap::new();
    for text in &args.opt {
        let (name, value) = text
            .split_once('=')
            .ok_or_else(|| Usage(format!("--opt {text}: write NAME=VALUE, for example type=tmpfs")))?;
        options.insert(name.to_owned(), value.to_owned());
    }
    let mut labels = labels(&args.label);
    let name = args.volume.or(args.name);
    if name.is_none() {
        // As docker marks them.
        labels.insert("com.docker.volume.anonymous".into(), String::new());
    }
    let anonymous = name.is_none();
    let created = layerfs_image::time::now();
    let new = NewVolume { name, driver: Some(args.driver), labels, options, created, anonymous };
    let volume = super::open()?.create(&new)?;
    crate::events::volume("create", &volume.name);
    ui::print(format!("{}\n", volume.name))?;
    Ok(ExitCode::SUCCESS)
}
