//! Limits: which file of which hierarchy each field of the specification is.

use std::fs;
use std::path::PathBuf;

use oci_spec::runtime::LinuxResources;

use super::{Cgroup, limits_legacy, limits_unified};

/// A limit that cannot be set.
#[derive(Debug, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct LimitError {
    /// In the document's spelling.
    pub field: String,
    /// Why.
    pub problem: String,
}

impl LimitError {
    pub(super) fn new(field: &str, problem: impl Into<String>) -> Self {
        Self { field: format!("linux.resources.{field}"), problem: problem.into() }
    }
}

/// True when there is any limit, apart from rules for devices.
pub(super) fn is_asked(resources: &LinuxResources) -> bool {
    let mut rest = resources.clone();
    rest.set_devices(None);
    rest != LinuxResources::default()
}

pub(super) fn set(cgroup: &Cgroup, resources: &LinuxResources) -> Result<(), LimitError> {
    let files = Files { cgroup };
    if let Some(memory) = resources.memory() {
        match files.has("memory.limit_in_bytes") {
            true => limits_legacy::memory(&files, memory)?,
            false => limits_unified::memory(&files, memory)?,
        }
    }
    if let Some(cpu) = resources.cpu() {
        match files.has("cpu.shares") {
            true => limits_legacy::cpu(&files, cpu)?,
            false => limits_unified::cpu(&files, cpu)?,
        }
        for (file, value, field) in
            [("cpuset.cpus", cpu.cpus(), "cpu.cpus"), ("cpuset.mems", cpu.mems(), "cpu.mems")]
        {
            if let Some(value) = value.as_ref().filter(|value| !value.is_empty()) {
                files.write(file, value, field)?;
            }
        }
    }
    if let Some(pids) = resources.pids() {
        let text = match pids.limit() {
            0 => None,
            limit if limit > 0 => Some(limit.to_string()),
            _ => Some("max".to_owned()),
        };
        if let Some(text) = text {
            files.write("pids.max", &text, "pids.limit")?;
        }
    }
    if let Some(io) = resources.block_io() {
        match files.has("io.max") || files.has("io.weight") {
            true => limits_unified::block_io(&files, io)?,
            false => limits_legacy::block_io(&files, io)?,
        }
    }
    for (index, limit) in resources.hugepage_limits().iter().flatten().enumerate() {
        let field = format!("hugepageLimits[{index}]");
        let size = limit.page_size();
        if size.is_empty() || !size.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return Err(LimitError::new(
                &format!("{field}.pageSize"),
                format!("{size:?} is no size of pages"),
            ));
        }
        let value = limit.limit().to_string();
        let legacy = format!("hugetlb.{size}.limit_in_bytes");
        let unified = format!("hugetlb.{size}.max");
        let file = if files.has(&legacy) { legacy } else { unified };
        files.write(&file, &value, &field)?;
    }
    if let Some(network) = resources.network() {
        limits_legacy::network(&files, network)?;
    }
    for (device, limit) in resources.rdma().iter().flatten() {
        let mut line = device.clone();
        if let Some(handles) = limit.hca_handles() {
            line += &format!(" hca_handle={handles}");
        }
        if let Some(objects) = limit.hca_objects() {
            line += &format!(" hca_object={objects}");
        }
        files.write("rdma.max", &line, &format!("rdma.{device}"))?;
    }
    if let Some(unified) = resources.unified() {
        limits_unified::plain(cgroup, unified)?;
    }
    Ok(())
}

/// The files of a cgroup, whichever hierarchy they are in.
pub(super) struct Files<'a> {
    cgroup: &'a Cgroup,
}

impl Files<'_> {
    pub(super) fn has(&self, file: &str) -> bool {
        self.cgroup.file(file).is_some()
    }

    pub(super) fn path(&self, file: &str) -> Option<PathBuf> {
        self.cgroup.file(file)
    }

    pub(super) fn write(&self, file: &str, value: &str, field: &str) -> Result<(), LimitError> {
        let Some(path) = self.path(file) else {
            let controller = file.split('.').next().unwrap_or(file);
            let problem =
                format!("the container's cgroup has no {file} (is the {controller} controller there?)");
            return Err(LimitError::new(field, problem));
        };
        fs::write(&path, value).map_err(|error| {
            LimitError::new(field, format!("write {value:?} to {}: {error}", path.display()))
        })
    }

    pub(super) fn write_if<T: ToString>(
        &self,
        file: &str,
        value: Option<T>,
        field: &str,
    ) -> Result<(), LimitError> {
        match value {
            Some(value) => self.write(file, &value.to_string(), field),
            None => Ok(()),
        }
    }

    /// The number that is in a file; `None` when it cannot be read or is no number.
    pub(super) fn number(&self, file: &str) -> Option<i64> {
        fs::read_to_string(self.path(file)?).ok()?.trim().parse().ok()
    }
}

/// `-1`, which is unlimited, and all that is negative, in the words of the unified hierarchy.
pub(super) fn or_max(value: i64) -> String {
    if value < 0 { "max".to_owned() } else { value.to_string() }
}
