//! `layerfs rm`.

use std::process::ExitCode;

use anyhow::bail;
use clap::Args;

use super::each;
use super::stop::end;
use super::store::{Container, Containers, Locked};
use crate::exit::Hinted;
use crate::ui;

/// Remove containers
#[derive(Debug, Args)]
pub(crate) struct RemoveArgs {
    /// Also containers that run, which are killed; one that does not exist is no failure
    #[arg(short, long)]
    force: bool,
    /// Also the volumes without a name that were made for them
    #[arg(short, long)]
    volumes: bool,
    /// Links are not supported
    #[arg(short, long, hide = true)]
    link: bool,
    /// The containers
    #[arg(value_name = "CONTAINER", required = true)]
    containers: Vec<String>,
}

pub(crate) fn remove(args: RemoveArgs) -> anyhow::Result<ExitCode> {
    if args.link {
        bail!("--link: there are no links between containers");
    }
    let containers = Containers::open()?;
    each(&args.containers, |name| {
        match containers.find(name) {
            Ok(container) => {
                one(&containers, &container, args.force)?;
                if args.volumes {
                    super::volume::remove_own(&container.config)?;
                }
            }
            Err(error) if args.force && error.to_string().starts_with("No such container") => {
                ui::error(&error);
                return Ok(String::new());
            }
            Err(error) => return Err(error),
        }
        Ok(name.clone())
    })
}

/// Removes one container.
pub(super) fn one(containers: &Containers, container: &Container, force: bool) -> anyhow::Result<()> {
    let is_busy = container.record.is_watched()
        && matches!(
            container.record.status,
            layerfs_runner::monitor::record::Status::Running
                | layerfs_runner::monitor::record::Status::Restarting
        );
    if is_busy && !force {
        bail!(Hinted {
            message: format!(
                "cannot remove container \"/{}\": container is {}",
                container.config.name,
                container.word()
            ),
            hint: "stop the container before attempting removal or force remove".into(),
        });
    }
    if is_busy && container.config.is_foreground {
        bail!("container {} belongs to a foreground run; end that", container.short());
    }
    if is_busy && end(container, Some(libc::SIGKILL), Some(0), true)? {
        return Ok(());
    }
    match container.lock() {
        Ok(Locked::Mine(_lock, now)) => {
            if !force && now.directory.join(super::layer::apply::JOURNAL).exists() {
                bail!(Hinted {
                    message: format!(
                        "container {} was being applied by a command that was killed",
                        now.config.name
                    ),
                    hint: format!(
                        "finish that first (layerfs apply {0}), or leave it as it is: layerfs rm -f {0}",
                        now.config.name
                    ),
                });
            }
            now.remove(containers)?;
            crate::events::container("destroy", &now.config, &[]);
            Ok(())
        }
        // Somebody has started it meanwhile.
        Ok(Locked::Runs(now)) => one(containers, &now, force),
        // Somebody else has removed it.
        Err(_) if !container.directory.exists() => Ok(()),
        Err(error) => Err(error),
    }
}
