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

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory with the files of a unified cgroup, as a machine with all controllers has them.
    fn unified(files: &[&str]) -> (tempfile::TempDir, Cgroup) {
        let directory = tempfile::tempdir().unwrap();
        for file in files.iter().chain(&["cgroup.events", "cgroup.procs"]) {
            fs::write(directory.path().join(file), "").unwrap();
        }
        let cgroup = Cgroup::borrowed(&[directory.path().to_owned()]);
        (directory, cgroup)
    }

    const ALL: [&str; 15] = [
        "memory.max",
        "memory.low",
        "memory.swap.max",
        "memory.current",
        "cpu.weight",
        "cpu.max",
        "cpu.max.burst",
        "cpu.idle",
        "cpuset.cpus",
        "cpuset.mems",
        "pids.max",
        "io.weight",
        "io.max",
        "hugetlb.2MB.max",
        "rdma.max",
    ];

    #[test]
    fn every_field_is_written_to_its_file_of_the_unified_hierarchy() {
        let (directory, cgroup) = unified(&ALL);
        let resources = |json: &str| serde_json::from_str::<LinuxResources>(json).unwrap();
        let cases = [
            (r#"{"memory":{"limit":1048576}}"#, "memory.max", "1048576"),
            (r#"{"memory":{"limit":-1}}"#, "memory.max", "max"),
            (r#"{"memory":{"limit":1048576,"swap":3145728}}"#, "memory.swap.max", "2097152"),
            (r#"{"memory":{"limit":1048576,"swap":-1}}"#, "memory.swap.max", "max"),
            (r#"{"memory":{"limit":1048576,"swap":1048576}}"#, "memory.swap.max", "0"),
            (r#"{"memory":{"reservation":524288}}"#, "memory.low", "524288"),
            (r#"{"cpu":{"shares":1024}}"#, "cpu.weight", "39"),
            (r#"{"cpu":{"quota":20000,"period":50000}}"#, "cpu.max", "20000 50000"),
            (r#"{"cpu":{"quota":-1}}"#, "cpu.max", "max 50000"),
            (r#"{"cpu":{"burst":10000}}"#, "cpu.max.burst", "10000"),
            (r#"{"cpu":{"idle":1}}"#, "cpu.idle", "1"),
            (r#"{"cpu":{"cpus":"0-1","mems":"0"}}"#, "cpuset.cpus", "0-1"),
            (r#"{"pids":{"limit":-1}}"#, "pids.max", "max"),
            (r#"{"pids":{"limit":20}}"#, "pids.max", "20"),
            (r#"{"blockIO":{"weight":10}}"#, "io.weight", "default 1"),
            (
                r#"{"blockIO":{"weightDevice":[{"major":8,"minor":0,"weight":1000}]}}"#,
                "io.weight",
                "8:0 10000",
            ),
            (
                r#"{"blockIO":{"throttleWriteIOPSDevice":[{"major":8,"minor":16,"rate":400}]}}"#,
                "io.max",
                "8:16 wiops=400",
            ),
            (
                r#"{"blockIO":{"throttleReadBpsDevice":[{"major":8,"minor":16,"rate":0}]}}"#,
                "io.max",
                "8:16 rbps=max",
            ),
            (r#"{"hugepageLimits":[{"pageSize":"2MB","limit":4194304}]}"#, "hugetlb.2MB.max", "4194304"),
            (
                r#"{"rdma":{"mlx5_0":{"hcaHandles":3,"hcaObjects":9}}}"#,
                "rdma.max",
                "mlx5_0 hca_handle=3 hca_object=9",
            ),
            (r#"{"unified":{"memory.low":"77"}}"#, "memory.low", "77"),
        ];
        for (json, file, expected) in cases {
            set(&cgroup, &resources(json)).unwrap();
            let found = fs::read_to_string(directory.path().join(file)).unwrap();
            assert_eq!(found, expected, "{json}");
        }
    }

    #[test]
    fn what_the_unified_hierarchy_cannot_do_names_the_field() {
        let (directory, cgroup) = unified(&ALL);
        fs::write(directory.path().join("memory.current"), "9000000\n").unwrap();
        let (_bare, without) = unified(&[]);
        let cases = [
            (&cgroup, r#"{"memory":{"limit":1048576,"checkBeforeUpdate":true}}"#, "memory.limit"),
            (&cgroup, r#"{"memory":{"limit":1048576,"swap":1000}}"#, "memory.swap"),
            (&cgroup, r#"{"memory":{"disableOOMKiller":true}}"#, "memory.disableOOMKiller"),
            (&cgroup, r#"{"cpu":{"realtimeRuntime":1000}}"#, "cpu.realtimeRuntime"),
            (&cgroup, r#"{"hugepageLimits":[{"pageSize":"../x","limit":1}]}"#, "hugepageLimits[0].pageSize"),
            (&cgroup, r#"{"unified":{"cgroup.procs":"1"}}"#, r#"unified["cgroup.procs"]"#),
            (&without, r#"{"pids":{"limit":1}}"#, "pids.limit"),
            (&without, r#"{"memory":{"limit":1048576}}"#, "memory.limit"),
            (&without, r#"{"blockIO":{"weight":10}}"#, "blockIO.weight"),
            (&without, r#"{"rdma":{"mlx5_0":{"hcaHandles":3}}}"#, "rdma.mlx5_0"),
        ];
        for (cgroup, json, field) in cases {
            let error = set(cgroup, &serde_json::from_str(json).unwrap()).unwrap_err();
            assert_eq!(error.field, format!("linux.resources.{field}"), "{json}");
        }
    }
}
