//! `layerfs login`.

use std::io::Read;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use layerfs_image::registry::{Client, Credentials, KeptIn, RegistryError};

use crate::exit::{Hinted, Usage};
use crate::registry::{RegistryArgs, hinted, server};
use crate::ui::{self, prompt};

/// A password is no longer than this, in bytes.
const MAX_PASSWORD: u64 = 64 << 10;

/// Log in to a registry, and keep the credentials for later commands
///
/// The credentials are tried first, and are kept only if the registry takes them: with the credential helper that
/// docker's configuration names, else in ~/.docker/config.json (or $DOCKER_CONFIG/config.json), readable by you
/// alone and not encrypted. docker and podman find them there, too.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples
  layerfs login registry.example.com:5000
  printenv TOKEN | layerfs login -u robot --password-stdin registry.example.com
  layerfs login                          Docker Hub

Exit codes
  0  logged in   1  refused, or the registry was not reached")]
pub(crate) struct LoginArgs {
    /// Name of the account; asked for if missing
    #[arg(short, long, value_name = "NAME")]
    username: Option<String>,
    /// The password; others can see it in the list of processes
    #[arg(short, long, value_name = "PASSWORD", conflicts_with = "password_stdin")]
    password: Option<String>,
    /// Read the password from standard input
    #[arg(long, requires = "username")]
    password_stdin: bool,
    #[command(flatten)]
    registry: RegistryArgs,
    /// The registry, HOST[:PORT]; without it Docker Hub
    #[arg(value_name = "SERVER")]
    server: Option<String>,
}

pub(crate) fn login(args: LoginArgs) -> anyhow::Result<ExitCode> {
    let registry = server(args.server.as_deref())?;
    let client = args.registry.client(&registry, |_| {})?;
    if args.password.is_some() {
        ui::warn("a password on the command line can be seen by others; use --password-stdin");
    }
    if args.username.is_none() && args.password.is_none() && with_known(&client, &registry)? {
        return Ok(ExitCode::SUCCESS);
    }
    let credentials = credentials(&args, &client, &registry)?;
    let outcome = client.login(&registry, &credentials).map_err(|error| refused(error, &registry))?;
    if let KeptIn::File(path) = &outcome.kept {
        ui::warn(format_args!(
            "the credentials are kept unencrypted in {path:?}; a credential helper (credsStore) would encrypt them"
        ));
    }
    if !outcome.checked {
        ui::warn(format_args!("{registry} asks nobody for credentials: they were not checked"));
    }
    ui::print("Login Succeeded\n")?;
    Ok(ExitCode::SUCCESS)
}

/// Tries what is kept from before. False when there is nothing, or the registry no longer takes it.
fn with_known(client: &Client, registry: &str) -> anyhow::Result<bool> {
    let known = client.credential_store().find(registry, "").context("look for kept credentials")?;
    let Some(known) = known else { return Ok(false) };
    ui::note(format_args!("trying the credentials that are kept for {registry}"));
    match client.login(registry, &known) {
        Ok(_) => {
            ui::print("Login Succeeded\n")?;
            Ok(true)
        }
        Err(error) if error.is_denied() => {
            ui::note("they are not taken any more");
            Ok(false)
        }
        Err(error) => Err(hinted(error)),
    }
}

fn credentials(args: &LoginArgs, client: &Client, registry: &str) -> anyhow::Result<Credentials> {
    let asked = |what: &str| -> anyhow::Result<()> {
        if prompt::is_possible() {
            return Ok(());
        }
        let message = format!("there is no terminal to ask for the {what}");
        Err(anyhow::Error::new(Hinted { message, hint: "give --username and --password-stdin".to_owned() }))
    };
    let username = match &args.username {
        Some(name) => name.clone(),
        None => {
            asked("account")?;
            let known = client.credential_store().username(registry);
            let default = known.as_deref().map_or_else(String::new, |name| format!(" ({name})"));
            let answer = prompt::line(&format!("Username{default}: ")).context("read the account")?;
            if answer.is_empty() { known.unwrap_or_default() } else { answer }
        }
    };
    if username.is_empty() || username.contains(':') {
        return Err(Usage("an account has a name, without a colon".to_owned()).into());
    }
    let password = match &args.password {
        Some(password) => password.clone(),
        None if args.password_stdin => {
            let mut text = String::new();
            let mut input = std::io::stdin().lock().take(MAX_PASSWORD);
            input.read_to_string(&mut text).context("read the password from standard input")?;
            // As docker: the line end of `echo` is no part of it.
            text.trim_end_matches(['\r', '\n']).to_owned()
        }
        None => {
            asked("password")?;
            prompt::secret("Password: ").context("read the password")?
        }
    };
    if password.is_empty() {
        return Err(Usage("the password is empty".to_owned()).into());
    }
    Ok(Credentials::password(username, password))
}

/// "Log in" is no remedy for a login that failed.
fn refused(error: RegistryError, registry: &str) -> anyhow::Error {
    if !error.is_denied() {
        return hinted(error);
    }
    let message = error.to_string();
    let hint =
        format!("is the account one of {registry}? Some registries want an access token as the password");
    anyhow::Error::new(error).context(Hinted { message, hint })
}
