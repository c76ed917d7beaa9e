//! What a monitor does with its container: mounting its root filesystem, making it, taking it away.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use layerfs_image::store::LayerHold;
use layerfs_runner::config::Choice;
use layerfs_runner::host::ReadOnlyView;
use layerfs_runner::monitor::{Begun, Body, Executed, Happening, Made, Started, Undone};
use layerfs_runner::runtime::{CreateRequest, ExecRequest, Runtime, RuntimeError};
use layerfs_runner::state::ProcessIdentity;
use layerfs_runner::{CreateError, FailureKind, Stdio};
use layerfs_unionfs::config::{Config, LowerSpec, UpperSpec};
use layerfs_unionfs::index::default_index_path;
use rustix::fs::{Gid, Uid};
use rustix::process::{Pid, PidfdFlags};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::config::{HealthConfig, MountSpec};
use super::store::{Container, Containers};
use super::{create, etc, network, parts, spec, store, volume};
use crate::commands::run::{Identity, remove_tree, store_root};
use crate::logging::LogOptions;
use crate::mount_process::{self, Pending};
use crate::{events, images, ui};

/// The process behind the mount, written down as soon as there is one.
const MOUNT: &str = "mount.json";
/// The processes behind further images.
const IMAGES: &str = "images.json";

/// A program to be executed in a container.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct ExecDescription {
    pub(super) args: Vec<String>,
    pub(super) env: Vec<String>,
    pub(super) workdir: Option<String>,
    pub(super) user: Option<String>,
    pub(super) tty: bool,
    pub(super) privileged: bool,
}

/// A container and its monitor's work.
#[derive(Debug)]
pub(super) struct Own {
    pub(super) container: Container,
    pub(super) log: LogOptions,
    /// The mount of its root filesystem that was begun before this process was.
    pub(super) begun: Option<Pending>,
}

/// The runtime's records of a container.
pub(super) fn runtime_of(directory: &Path) -> Runtime {
    Runtime::new(directory.join("oci"))
}

pub(super) fn mount_process_of(directory: &Path) -> Option<ProcessIdentity> {
    serde_json::from_slice(&fs::read(directory.join(MOUNT)).ok()?).ok()
}

/// The processes behind the images that it has mounted beside its own, in the order of its mounts.
pub(super) fn image_processes_of(directory: &Path) -> Vec<ProcessIdentity> {
    let text = fs::read(directory.join(IMAGES)).unwrap_or_default();
    serde_json::from_slice(&text).unwrap_or_default()
}

/// Where the image of its mount number `at` is mounted for it.
pub(super) fn image_place(directory: &Path, at: usize) -> PathBuf {
    directory.join("images").join(at.to_string())
}

impl Own {
    fn directory(&self) -> &Path {
        &self.container.directory
    }

    pub(super) fn merged(&self) -> PathBuf {
        self.directory().join("merged")
    }

    /// Mounts the root filesystem, unless that is there from the last start.
    pub(super) fn mount(&self) -> anyhow::Result<ProcessIdentity> {
        let directory = self.directory();
        if let Some(process) = mount_process_of(directory).filter(|process| process.is_alive()) {
            let namespace = |of: String| fs::read_link(format!("/proc/{of}/ns/mnt"));
            if namespace(process.pid.to_string())? == namespace("self".into())? {
                return Ok(process);
            }
            // Of a command that was killed while it had the container mounted for itself.
            process.kill().context("end the process of an earlier mount")?;
        }
        self.mounted(self.begin_mount(true)?.context("begin to mount the root filesystem")?)
    }

    /// Makes the process that mounts the root filesystem. `None` where a layer would have to be unpacked before, and that
    /// is not wanted.
    fn begin_mount(&self, may_unpack: bool) -> anyhow::Result<Option<Pending>> {
        let directory = self.directory();
        // Gone after a removal that came to nothing.
        fs::create_dir_all(self.merged()).context("make a mountpoint")?;
        let Some((lowers, holds)) = self.lowers(may_unpack)? else { return Ok(None) };
        let upper = UpperSpec { upper: directory.join("upper"), work: directory.join("work") };
        if let Some(top) = lowers.first() {
            create::take_attributes(&top.path, &upper.upper)
                .context("give the root directory the attributes of the image's")?;
        }
        let mut config = Config::new(lowers, Some(upper));
        config.flags.source = format!("layerfs:{}", self.container.short());
        // Nobody will ask for what a crash leaves of it.
        config.volatile = self.container.config.remove;
        // Its changes may be applied to a root filesystem later.
        config.record_lower = self.container.config.rootfs.is_some();
        let mut log = self.log.clone();
        log.file = Some(directory.join("mount.log"));
        let held: Vec<_> = holds.iter().map(LayerHold::as_fd).collect();
        // The process writes it down itself: whoever waits for it may be killed meanwhile.
        let announce = directory.join(MOUNT);
        mount_process::begin_holding(&config, &self.merged(), &log, &held, &announce)
            .context("mount the root filesystem")
            .map(Some)
    }

    fn mounted(&self, pending: Pending) -> anyhow::Result<ProcessIdentity> {
        let mount = pending
            .wait()
            .inspect_err(|_| drop(fs::remove_file(self.directory().join(MOUNT))))
            .context("mount the root filesystem")?;
        ProcessIdentity::of(mount.pid).context("look at the mount process")
    }

    fn lowers(&self, may_unpack: bool) -> anyhow::Result<Option<Lowers>> {
        let config = &self.container.config;
        if let Some(rootfs) = &config.rootfs {
            let lower = self.directory().join("lower");
            fs::create_dir_all(&lower).context("make a mountpoint")?;
            let view = ReadOnlyView::new(rootfs, &lower, &[&store_root()?])
                .map_err(|error| anyhow!(error.words()))
                .context("make a read-only view of the root filesystem")?;
            // It is the monitor's mount namespace's, and goes with it.
            std::mem::forget(view);
            let mut layer = LowerSpec::plain(lower);
            layer.submounts = true;
            let index = default_index_path(rootfs);
            if rootfs.parent().is_some() && index.is_file() {
                layer.index = Some(index);
            }
            return Ok(Some((vec![layer], Vec::new())));
        }
        let id = config.image.as_deref().context("the container is on no image")?;
        image_lowers(id, &config.image_name, may_unpack)
    }

    /// Mounts the images that it has beside its own.
    fn mount_images(&self) -> anyhow::Result<()> {
        let directory = self.directory();
        let mut processes = image_processes_of(directory);
        if !processes.is_empty() && processes.iter().all(|process| process.is_alive()) {
            return Ok(());
        }
        processes.clear();
        for (at, mount) in self.container.config.mounts.iter().enumerate() {
            let MountSpec::Image { image, name, .. } = mount else { continue };
            let found = image_lowers(image, name, true)?;
            let (lowers, holds) = found.with_context(|| format!("unpack image {name}"))?;
            let place = image_place(directory, at);
            fs::create_dir_all(&place).context("make a mountpoint")?;
            let mut config = Config::new(lowers, None);
            config.flags.source = format!("layerfs:{}", self.container.short());
            let mut log = self.log.clone();
            log.file = Some(directory.join("mount.log"));
            let held: Vec<_> = holds.iter().map(LayerHold::as_fd).collect();
            let mounted = mount_process::spawn_holding(&config, &place, &log, &held, None)
                .with_context(|| format!("mount image {name}"))?;
            processes.push(ProcessIdentity::of(mounted.pid).context("look at the mount process")?);
            fs::write(directory.join(IMAGES), serde_json::to_vec(&processes)?)
                .context("write down the mount process")?;
        }
        Ok(())
    }

    fn run(&mut self, stdio: Stdio) -> anyhow::Result<Made> {
        let mount = match self.begun.take() {
            Some(pending) => self.mounted(pending)?,
            None => self.mount()?,
        };
        self.mount_images()?;
        let directory = self.directory();
        let merged = self.merged();
        let config = &self.container.config;
        let identity = Identity::resolve_with(Some(&config.user), &config.groups, &merged)?;
        etc::write(&self.container)?;
        let document = spec::document(&self.container, &merged, &identity)?;
        let bundle = directory.join("bundle");
        fs::create_dir_all(&bundle).context("make the bundle")?;
        super::store::write_private(&bundle.join("config.json"), &serde_json::to_vec(&document)?)
            .context("write the bundle")?;
        if !config.passes_streams() {
            give(&stdio, &identity)?;
        }
        let runtime = runtime_of(directory);
        let request = CreateRequest {
            id: config.id.clone(),
            bundle,
            choice: Choice { init: config.init, ..Choice::default() },
            keeps_terminal: true,
            stdio,
            ..CreateRequest::default()
        };
        let mut container = runtime.create(request)?;
        let terminal = container.take_terminal();
        let process = ProcessIdentity::of(container.pid()).context("look at the container's process")?;
        let cgroup = container.cgroup_directories().to_vec();
        // Its ends of pipes must not stay here, or their readers wait for ever.
        drop(container);
        let pid = Pid::from_raw(process.pid).context("look at the container's process")?;
        // Name and networks may be others by now.
        self.tell_of_volumes("mount");
        let kept = network::join(&store::read_for_monitor(directory)?.config, directory, pid)?;
        runtime.start_new(&config.id)?;
        Ok(Made { started: Started { process, mount: Some(mount), cgroup }, terminal, kept })
    }

    /// The event of each of its volumes.
    fn tell_of_volumes(&self, action: &str) {
        let config = &self.container.config;
        for mount in &config.mounts {
            let MountSpec::Volume { name, target, read_only, .. } = mount else { continue };
            let writable = (!read_only).to_string();
            let more = [("destination", target.as_str()), ("propagation", ""), ("read/write", &writable)];
            let more = if action == "mount" { &more[..] } else { &[] };
            let attributes = [&[("container", config.id.as_str())], more].concat();
            events::volume_of(action, name, &attributes);
        }
    }

    fn execute(&self, description: OwnedFd, stdio: Stdio) -> anyhow::Result<(Executed, Option<OwnedFd>)> {
        let mut text = Vec::new();
        let mut file = File::from(description);
        std::io::Seek::rewind(&mut file).context("read the description")?;
        file.read_to_end(&mut text).context("read the description")?;
        self.execute_described(serde_json::from_slice(&text).context("read the description")?, stdio)
    }

    fn execute_described(
        &self,
        wanted: ExecDescription,
        stdio: Stdio,
    ) -> anyhow::Result<(Executed, Option<OwnedFd>)> {
        let directory = self.directory();
        let config = &self.container.config;
        let name = create::new_id()?;
        for action in ["exec_create", "exec_start"] {
            events::executed(&format!("{action}: {}", wanted.args.join(" ")), config, &name, &[]);
        }
        let user = wanted.user.as_deref().unwrap_or(&config.user);
        let identity = Identity::resolve_with(Some(user), &config.groups, &self.merged())?;
        give(&stdio, &identity)?;
        let bundle = fs::read(directory.join("bundle/config.json")).context("read the bundle")?;
        let mut process: Value = serde_json::from_slice::<Value>(&bundle)?["process"].take();
        process["args"] = wanted.args.into();
        let mut env = spec::environment(config, wanted.tty, &identity.home.to_string_lossy());
        for entry in wanted.env {
            let name = entry.split('=').next().unwrap_or_default().to_owned();
            env.retain(|old| old.split('=').next() != Some(name.as_str()));
            env.push(entry);
        }
        process["env"] = env.into();
        process["user"] = spec::user(&identity);
        process["terminal"] = wanted.tty.into();
        if let Some(workdir) = wanted.workdir {
            process["cwd"] = workdir.into();
        }
        let held = match wanted.privileged {
            true => spec::all_capabilities().into(),
            false => process["capabilities"]["bounding"].clone(),
        };
        process["capabilities"]["bounding"] = held.clone();
        let in_force = if identity.uid == 0 { held } else { Value::Array(Vec::new()) };
        process["capabilities"]["effective"] = in_force.clone();
        process["capabilities"]["permitted"] = in_force;
        if let Some(process) = process.as_object_mut() {
            process.remove("oomScoreAdj");
        }
        let memory = rustix::fs::memfd_create(c"process", rustix::fs::MemfdFlags::CLOEXEC)
            .context("describe the process")?;
        rustix::io::write(&memory, &serde_json::to_vec(&process)?).context("describe the process")?;
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&memory));
        let request = ExecRequest {
            id: config.id.clone(),
            process: Some(path.into()),
            keeps_terminal: true,
            stdio,
            ..ExecRequest::default()
        };
        let mut executed = runtime_of(directory).exec(request)?;
        executed.release();
        let process = ProcessIdentity::of(executed.pid()).context("look at the process")?;
        Ok((Executed { process, name }, executed.take_terminal()))
    }

    /// Does every step, whatever has become of those before it, and answers with the first error: on a full disk there is
    /// room again when the container's files are gone.
    fn take_away(&self, last: bool, remove: bool) -> anyhow::Result<()> {
        let directory = self.directory();
        let config = &self.container.config;
        let left = network::leave(config, directory);
        self.tell_of_volumes("unmount");
        let mut others = vec![runtime_of(directory).delete(&config.id, true).map_err(anyhow::Error::from)];
        if last {
            others.push(self.unmount());
            for name in ["oci", "bundle"] {
                others.push(remove_tree(&directory.join(name)));
            }
        }
        // What is still in use is not removed.
        if last && remove && others.iter().all(Result::is_ok) {
            others.push(self.remove());
        }
        let left = left.or_else(|error| match remove {
            // There may be room for its documents now.
            true => network::leave(config, directory).map_err(|_| error),
            false => Err(error),
        });
        std::iter::once(left).chain(others).collect()
    }

    /// Ends all mounts that were made for it.
    fn unmount(&self) -> anyhow::Result<()> {
        let directory = self.directory();
        let mut done = vec![parts::remove(directory), end_mount_of(self)];
        let images = image_processes_of(directory);
        for (process, at) in images.into_iter().zip(self.images()) {
            done.push(end_mount(process, &image_place(directory, at)));
        }
        done.into_iter().collect::<anyhow::Result<()>>()?;
        remove_tree(&directory.join("images"))?;
        drop(fs::remove_file(directory.join(IMAGES)));
        Ok(())
    }

    fn remove(&self) -> anyhow::Result<()> {
        self.container.remove(&Containers::at(&store_root()?)?)?;
        events::container("destroy", &self.container.config, &[]);
        // As docker: what `--rm` removes goes with its volumes, what `rm -f` removes does with `-v` alone.
        match self.container.config.remove {
            true => volume::remove_own(&self.container.config),
            false => Ok(()),
        }
    }

    /// Which of its mounts are images.
    fn images(&self) -> impl Iterator<Item = usize> + '_ {
        let mounts = self.container.config.mounts.iter().enumerate();
        mounts.filter(|(_, mount)| matches!(mount, MountSpec::Image { .. })).map(|(at, _)| at)
    }
}

/// Layers, the topmost first, held as long as they are in use.
type Lowers = (Vec<LowerSpec>, Vec<LayerHold>);

/// The layers of an image. `None` where one is not unpacked, and that `may_unpack` not be done.
fn image_lowers(id: &str, name: &str, may_unpack: bool) -> anyhow::Result<Option<Lowers>> {
    let store = images::open_store()?;
    let image = images::find(&store, id)?;
    let hold = || image.mounted_layers().iter().map(|diff_id| store.hold_layer(diff_id)).collect();
    let holds: Result<Vec<LayerHold>, _> = hold();
    let holds = match holds {
        Ok(holds) => holds,
        Err(_) if !may_unpack => return Ok(None),
        // A layer is not unpacked; held ones stay.
        Err(_) => images::with_session(&store, |session| {
            store.ensure_layers(session, &image)?;
            Ok(hold()?)
        })?,
    };
    if holds.is_empty() {
        anyhow::bail!("image {name} has no layers: there is nothing to run");
    }
    let lower = |hold: &LayerHold| {
        let mut lower = LowerSpec::plain(hold.tree.clone());
        lower.index = Some(hold.index.clone());
        // The store's own promise.
        lower.immutable = true;
        lower
    };
    Ok(Some((holds.iter().map(lower).collect(), holds)))
}

/// Called in the process that becomes the monitor, before it starts as that: says so in the state, and has the root
/// filesystem mounted meanwhile. `None`: the monitor does it, and says what is wrong.
pub(super) fn begin(container: &Container) -> Option<Begun> {
    let mut record = container.record.clone();
    record.take_over().and_then(|_| record.save(&container.directory)).ok()?;
    if mount_process_of(&container.directory).is_some_and(ProcessIdentity::is_alive) {
        return None;
    }
    let own = Own { container: container.clone(), log: LogOptions::from_env(), begun: None };
    let (pid, descriptor) = own.begin_mount(false).ok().flatten()?.into_parts();
    Some(Begun { descriptor, word: pid.as_raw_nonzero().to_string().into() })
}

/// Ends the mount of the root filesystem, and what is mounted in it and under it.
pub(super) fn end_mount_of(own: &Own) -> anyhow::Result<()> {
    let directory = own.directory();
    if let Some(process) = mount_process_of(directory) {
        end_mount(process, &own.merged())?;
        fs::remove_file(directory.join(MOUNT)).context("forget the mount process")?;
    }
    let lower = directory.join("lower");
    if lower.exists() {
        // The view of a root filesystem.
        rustix::mount::unmount(&lower, rustix::mount::UnmountFlags::DETACH).ok();
    }
    Ok(())
}

/// Asks it to unmount, and waits until it has released the layers and the upper.
fn end_mount(process: ProcessIdentity, merged: &Path) -> anyhow::Result<()> {
    let Some(pid) = Pid::from_raw(process.pid).filter(|_| process.is_alive()) else {
        rustix::mount::unmount(merged, rustix::mount::UnmountFlags::DETACH).ok();
        return Ok(());
    };
    let pidfd = match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
        Err(rustix::io::Errno::SRCH) => return Ok(()),
        result => result.context("watch the mount process")?,
    };
    match rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::TERM) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => {}
        Err(error) => return Err(error).context("ask the mount process to unmount"),
    }
    let mut wanted = [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)];
    rustix::io::retry_on_intr(|| rustix::event::poll(&mut wanted, None))
        .context("wait for the mount process")?;
    Ok(())
}

/// Pipes belong to the program's user, so that it can open `/dev/stdout` again.
fn give(stdio: &Stdio, identity: &Identity) -> anyhow::Result<()> {
    let (uid, gid) = (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
    for fd in [&stdio.stdin, &stdio.stdout, &stdio.stderr].into_iter().flatten() {
        let kind = rustix::fs::FileType::from_raw_mode(
            rustix::fs::fstat(fd.as_fd()).context("look at a stream")?.st_mode,
        );
        if kind == rustix::fs::FileType::Fifo {
            rustix::fs::fchown(fd, Some(uid), Some(gid)).context("give a stream to the program's user")?;
        }
    }
    Ok(())
}

fn undone(error: &anyhow::Error) -> Undone {
    let kind = error.chain().find_map(|cause| match cause.downcast_ref::<RuntimeError>() {
        Some(RuntimeError::Create(create)) => Some(create.kind()),
        _ => cause.downcast_ref::<CreateError>().map(CreateError::kind),
    });
    Undone { kind: kind.unwrap_or(FailureKind::Setup), words: ui::chain(error) }
}

impl Body for Own {
    fn start(&mut self, stdio: Stdio) -> Result<Made, Undone> {
        self.run(stdio).map_err(|error| undone(&error))
    }

    fn probe(&mut self, stdio: Stdio) -> Result<Executed, Undone> {
        let args = self.container.config.health.as_ref().map(HealthConfig::args).unwrap_or_default();
        let description = ExecDescription { args, ..ExecDescription::default() };
        match self.execute_described(description, stdio) {
            Ok((executed, _)) => Ok(executed),
            Err(error) => Err(undone(&error)),
        }
    }

    fn happened(&mut self, what: &Happening) {
        let config = &self.container.config;
        match what {
            Happening::Started => events::container("start", config, &[]),
            Happening::Died(code) => events::container("die", config, &[("exitCode", &code.to_string())]),
            Happening::OutOfMemory => events::container("oom", config, &[]),
            Happening::Health(health) => {
                events::container(&format!("health_status: {}", health.word()), config, &[]);
            }
            Happening::Detached => events::container("detach", config, &[]),
            Happening::Resized(size) => {
                let (height, width) = (size.rows.to_string(), size.columns.to_string());
                events::container("resize", config, &[("height", &height), ("width", &width)]);
            }
            Happening::ExecDetached(name) => events::executed("exec_detach", config, name, &[]),
            Happening::ExecDied(name, code) => {
                events::executed("exec_die", config, name, &[("exitCode", &code.to_string())]);
            }
        }
    }

    fn exec(&mut self, description: OwnedFd, stdio: Stdio) -> Result<(Executed, Option<OwnedFd>), Undone> {
        self.execute(description, stdio).map_err(|error| undone(&error))
    }

    fn clean_up(&mut self, _started: Option<&Started>, last: bool, remove: bool) -> Result<(), String> {
        if let Some(pending) = self.begun.take() {
            // What it has mounted is known from here on, also where the start did not come to that.
            pending.settle();
        }
        self.take_away(last, remove).map_err(|error| ui::chain(&error))
    }
}
