//! How the program is linked: `docs/decisions/0013-quick-start.md`.

use std::path::Path;
use std::process::Command;

/// What Rust's runtime takes from the compiler's support library to unwind the stack.
const UNWINDER: [&str; 14] = [
    "_Unwind_Backtrace",
    "_Unwind_DeleteException",
    "_Unwind_FindEnclosingFunction",
    "_Unwind_GetCFA",
    "_Unwind_GetDataRelBase",
    "_Unwind_GetIP",
    "_Unwind_GetIPInfo",
    "_Unwind_GetLanguageSpecificData",
    "_Unwind_GetRegionStart",
    "_Unwind_GetTextRelBase",
    "_Unwind_RaiseException",
    "_Unwind_Resume",
    "_Unwind_SetGR",
    "_Unwind_SetIP",
];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-link-arg-bins=-no-pie");
    if let Some(directory) = static_unwinder() {
        println!("cargo::rustc-link-search=native={directory}");
        println!("cargo::rustc-link-lib=static:-bundle=gcc_eh");
        // Taken from the archive before the linker comes to the shared library, which nothing needs then.
        for symbol in UNWINDER {
            println!("cargo::rustc-link-arg-bins=-Wl,--undefined={symbol}");
        }
    }
}

/// The directory of the unwinder as an archive, where the linker's driver knows one.
fn static_unwinder() -> Option<String> {
    let linker = std::env::var_os("RUSTC_LINKER").unwrap_or_else(|| "cc".into());
    let output = Command::new(linker).arg("-print-file-name=libgcc_eh.a").output().ok()?;
    let path = String::from_utf8(output.stdout).ok()?;
    // A name alone comes back where there is none.
    let directory = Path::new(path.trim()).parent().filter(|d| d.is_absolute())?;
    directory.to_str().map(str::to_owned)
}
