//! Any text is read as a Dockerfile, or refused at a line that it has; its steps change a config, or are refused.
#![no_main]

use std::collections::BTreeMap;

use layerfs_build::config::StageState;
use layerfs_build::pattern::IgnoreList;
use layerfs_build::plan::{Wanted, plan};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(list) = IgnoreList::parse(text) {
        list.ignores("a/b.c");
    }
    let arguments = BTreeMap::from([("given".to_owned(), "value".to_owned())]);
    let wanted = Wanted { arguments: arguments.clone(), ..Wanted::default() };
    let plan = match plan(text, &wanted) {
        Ok(plan) => plan,
        Err(error) => {
            assert!(!error.shown("Dockerfile", text).is_empty());
            return;
        }
    };
    for stage in &plan.stages {
        let mut state = StageState::scratch("linux", "amd64", None, plan.escape);
        for step in &stage.steps {
            if let Err(error) = state.evaluate(step, &plan, &arguments) {
                assert!(!error.shown("Dockerfile", text).is_empty());
                break;
            }
        }
    }
});
