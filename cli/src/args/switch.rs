//! Switches with a value, `--rm=true` and `-i=false`, as Go's flags have them.
//!
//! clap gives values to options that take one and to no switch. Rather than to make every switch such an option, which its
//! help would show, a command line that was refused for it is written without it.

use std::ffi::OsString;

use clap::ArgAction;
use clap::error::{ContextKind, ContextValue, ErrorKind};

/// Takes out of `arguments` the value of a switch that made `read` fail with `error`, of the command line `whole`; false if it is about something else.
///
/// # Errors
/// The value is neither true nor false.
pub(super) fn resolve<C>(
    arguments: &mut Vec<OsString>,
    error: &clap::Error,
    whole: clap::Command,
    read: impl Fn(&[OsString]) -> Result<C, clap::Error>,
) -> Result<bool, clap::Error> {
    fn name(error: &clap::Error) -> Option<&str> {
        match error.get(ContextKind::InvalidArg) {
            Some(ContextValue::String(text)) => Some(text),
            _ => None,
        }
    }
    // clap does not say where. The first argument with which it says the same is the one.
    let same = |other: &clap::Error| other.kind() == error.kind() && name(other) == name(error);
    let Some(at) = (1..arguments.len()).find(|at| read(&arguments[..=*at]).is_err_and(|other| same(&other)))
    else {
        return Ok(false);
    };
    let Some((before, value)) = arguments[at].to_str().and_then(|argument| argument.split_once('=')) else {
        return Ok(false);
    };
    // clap takes `-i=false` and `-it=false` for letters of which `=` is one, and anything else is no switch.
    if error.kind() == ErrorKind::UnknownArgument && (before.starts_with("--") || name(error) != Some("-=")) {
        return Ok(false);
    }
    let Some(on) = truth(value) else {
        return Err(clap::Error::raw(
            ErrorKind::InvalidValue,
            format!("invalid argument {value:?} for {before:?} flag: it is neither true nor false\n"),
        ));
    };
    let before = before.to_owned();
    let last = before.len() - before.chars().last().map_or(0, char::len_utf8);
    if on {
        arguments[at] = before.into();
        return Ok(true);
    }
    let earlier = arguments.drain(1..=at).collect::<Vec<_>>();
    let Some((_, earlier)) = earlier.split_last() else { return Ok(false) };
    let mut kept = without(whole, earlier, before.strip_prefix("--").ok_or(&before[last..]));
    // Of several letters only the last had the value.
    if !before.starts_with("--") && before[..last].len() > 1 {
        kept.push(before[..last].into());
    }
    arguments.splice(1..1, kept);
    Ok(true)
}

/// The arguments without a switch, named by its long name or its letter: what comes later counts.
fn without(mut command: clap::Command, arguments: &[OsString], name: Result<&str, &str>) -> Vec<OsString> {
    command.build();
    let mut at = &command;
    for argument in arguments {
        at = argument.to_str().and_then(|word| at.find_subcommand(word)).unwrap_or(at);
    }
    let switches: Vec<&clap::Arg> =
        at.get_arguments().filter(|arg| matches!(arg.get_action(), ArgAction::SetTrue)).collect();
    let Some(switch) = switches.iter().find(|arg| match name {
        Ok(long) => arg.get_long() == Some(long),
        Err(letter) => arg.get_short().is_some_and(|short| letter.starts_with(short)),
    }) else {
        return arguments.to_vec();
    };
    let is_switch = |letter: char| switches.iter().any(|arg| arg.get_short() == Some(letter));
    arguments
        .iter()
        .filter_map(|argument| {
            let text = argument.to_str().unwrap_or_default();
            if let Some(long) = text.strip_prefix("--") {
                return (switch.get_long() != Some(long)).then(|| argument.clone());
            }
            match text.strip_prefix('-') {
                Some(letters) if !letters.is_empty() && letters.chars().all(is_switch) => {
                    let left: String =
                        letters.chars().filter(|letter| switch.get_short() != Some(*letter)).collect();
                    (!left.is_empty()).then(|| format!("-{left}").into())
                }
                _ => Some(argument.clone()),
            }
        })
        .collect()
}

/// As Go's `strconv.ParseBool`.
fn truth(value: &str) -> Option<bool> {
    match value {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Sample {
        #[arg(long)]
        rm: bool,
        #[arg(short, long)]
        interactive: bool,
        #[arg(short, long)]
        tty: bool,
        #[arg(short, long)]
        name: Option<String>,
        #[arg(num_args = 0.., trailing_var_arg = true)]
        words: Vec<String>,
    }

    fn read(line: &str) -> Result<Sample, clap::Error> {
        let arguments: Vec<OsString> =
            std::iter::once("sample").chain(line.split_whitespace()).map(Into::into).collect();
        super::super::parse(&arguments)
    }

    #[test]
    fn regression_switches_have_values_and_the_last_option_counts() {
        for (line, rm, interactive, tty) in [
            ("--rm=true x", true, false, false),
            ("--rm=false -it=true x", false, true, true),
            ("--rm --rm=0 -it=F x", false, true, false),
            ("-i=1 -t=T --rm=false --rm x", true, true, true),
            ("-n=true -it=false x", false, true, false),
            ("-i -i --interactive=false -t x", false, false, true),
            ("--interactive -i=false -t=false x", false, false, false),
            ("-it --rm --tty=false --rm=true x", true, true, false),
        ] {
            let sample = read(line).unwrap_or_else(|error| panic!("{line}: {error}"));
            assert_eq!((sample.rm, sample.interactive, sample.tty), (rm, interactive, tty), "{line}");
            assert_eq!(sample.words, ["x"], "{line}");
        }
        let sample = read("--name a -n b --rm=true x --rm=false --name=c").unwrap();
        assert_eq!(sample.name.as_deref(), Some("b"));
        assert!(sample.rm);
        assert_eq!(sample.words, ["x", "--rm=false", "--name=c"]);
        let error = read("--rm=maybe x").unwrap_err().to_string();
        assert!(error.contains(r#"invalid argument "maybe" for "--rm" flag"#), "{error}");
    }
}
