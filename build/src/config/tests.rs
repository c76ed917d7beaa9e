use super::*;
use crate::plan::{Wanted, plan};

fn built(text: &str, given: &[(&str, &str)]) -> Result<(StageState, Vec<Evaluated>), LanguageError> {
    let given: BTreeMap<String, String> =
        given.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
    let plan = plan(text, &Wanted { arguments: given.clone(), ..Wanted::default() })?;
    let mut state = StageState::scratch("linux", "amd64", None, plan.escape);
    let stage = plan.stages.last().unwrap();
    let all: Result<Vec<_>, _> = stage.steps.iter().map(|step| state.evaluate(step, &plan, &given)).collect();
    Ok((state, all?))
}

fn config(text: &str) -> Value {
    built(&format!("FROM scratch\n{text}"), &[]).unwrap().0.config.config
}

fn history(text: &str, given: &[(&str, &str)]) -> Vec<String> {
    built(text, given).unwrap().1.into_iter().filter_map(|done| done.history).collect()
}

#[test]
fn the_config_changes() {
    let found = config(
        "ENV a=1 b=$a\nENV b=${a}2 c=\"x y\"\nLABEL l=$b\nUSER u$a\nEXPOSE 80 53/udp 8000-8001\nVOLUME /v$a [x]\n",
    );
    assert_eq!(found["Env"], json!([format!("PATH={PATH}"), "a=1", "b=12", "c=x y"]));
    assert_eq!(found["Labels"], json!({ "l": "12" }));
    assert_eq!(found["User"], "u1");
    assert_eq!(found["ExposedPorts"], json!({ "80/tcp": {}, "53/udp": {}, "8000/tcp": {}, "8001/tcp": {} }));
    assert_eq!(found["Volumes"], json!({ "/v1": {}, "[x]": {} }));
    let found = config(
        "WORKDIR /a\nWORKDIR b/../c\nSHELL [\"/bin/bash\", \"-ec\"]\nCMD x y\nSTOPSIGNAL SIGRTMIN+3\nONBUILD RUN x\n",
    );
    assert_eq!(found["WorkingDir"], "/a/c");
    assert_eq!(found["Cmd"], json!(["/bin/bash", "-ec", "x y"]));
    assert_eq!(found["OnBuild"], json!(["RUN x"]));
    let found = config("CMD [\"a\"]\nENTRYPOINT [\"b\"]\nHEALTHCHECK --interval=5s CMD c d\n");
    assert_eq!((&found["Cmd"], &found["Entrypoint"]), (&json!(["a"]), &json!(["b"])));
    assert_eq!(found["Healthcheck"], json!({ "Test": ["CMD-SHELL", "c d"], "Interval": 5_000_000_000_i64 }));
}

#[test]
fn a_new_entrypoint_forgets_the_images_command() {
    let mut state = StageState::scratch("linux", "amd64", None, '\\');
    state.config.config["Cmd"] = json!(["old"]);
    let plan = plan("FROM scratch\nENTRYPOINT [\"x\"]", &Wanted::default()).unwrap();
    state.evaluate(&plan.stages[0].steps[0], &plan, &BTreeMap::new()).unwrap();
    assert!(state.config.config.get("Cmd").is_none());
}

#[test]
fn arguments_have_their_scope() {
    let text = "ARG g=global\nARG unset\nFROM scratch\nENV a=$g\nARG g\nARG h=${g}2\nARG unset\nENV b=$g$h$unset\nENV h=env\nENV c=$h\n";
    let env = |given: &[(&str, &str)]| built(text, given).unwrap().0.config.run_list("Env")[1..].to_vec();
    assert_eq!(env(&[]), ["a=", "b=globalglobal2", "h=env", "c=env"]);
    assert_eq!(env(&[("g", "x"), ("h", "y")]), ["a=", "b=xy", "h=env", "c=env"]);
}

#[test]
fn the_history_is_dockers() {
    let text = "FROM scratch\nARG v=1\nRUN echo $v\nRUN [\"a\", \"b\"]\nCOPY --chown=1:2 --from=x a b /c/\nCMD [\"s\", \"t u\"]\nEXPOSE 80\nWORKDIR /w\n";
    assert_eq!(
        history(text, &[]),
        [
            "ARG v=1",
            "RUN |1 v=1 /bin/sh -c echo $v",
            "RUN |1 v=1 a b",
            "COPY --from=x --chown=1:2 a b /c/",
            "CMD [\"s\" \"t u\"]",
            "EXPOSE [80/tcp]",
            "WORKDIR /w"
        ]
    );
}

#[test]
fn programs_find_their_arguments() {
    let run = |text: &str, given: &[(&str, &str)]| match built(text, given).unwrap().1.pop().unwrap().action {
        Action::Run(run) => *run,
        other => panic!("{other:?}"),
    };
    let found = run(
        "FROM scratch\nARG a=1\nENV b=2\nWORKDIR /w\nUSER u\nRUN --mount=type=cache,target=c x",
        &[("http_proxy", "p")],
    );
    assert_eq!(found.env, ["a=1", "http_proxy=p", &format!("PATH={PATH}"), "b=2"]);
    assert_eq!(
        (found.workdir.as_str(), found.user.as_str(), found.mounts[0].target.as_str()),
        ("/w", "u", "/w/c")
    );
    let found = run("FROM scratch\nRUN <<E\nset -e\necho $x\nE\n", &[]);
    assert_eq!(found.args, ["/bin/sh", "-c", "set -e\necho $x\n"]);
    let found = run("FROM scratch\nRUN <<-E\n\t#!/bin/x\n\ty\nE\n", &[]);
    assert_eq!(
        (found.args[0].as_str(), found.script),
        ("/dev/pipes/E", Some(("E".into(), "#!/bin/x\ny\n".into())))
    );
    let found = run("FROM scratch\nRUN cat <<E >/f && x\n1\nE\n", &[]);
    assert_eq!(found.args[2], "cat <<E >/f && x\n1\nE");
}

#[test]
fn here_documents_of_copies_are_expanded() {
    let text = "FROM scratch\nENV a=1\nCOPY <<x <<'y' /d/\n$a ${b:-\"q\"} \\$a \"$a\" '$a' $\n\nx\n$a\ny\n";
    let Action::Copy(copy) = built(text, &[]).unwrap().1.pop().unwrap().action else { panic!() };
    assert_eq!(copy.spec.inline[0].content, "1 \"q\" $a \"1\" '1' $\n\n");
    assert_eq!(copy.spec.inline[1].content, "$a\n");
}

/// As BuildKit's own test of special symbols has it.
#[test]
fn regression_a_backslash_in_a_here_document_goes() {
    let text = "FROM scratch\nCOPY <<a <<'b' /d/\n\\\na\n\\\nb\nCOPY <<c /d/\n\\\\ \\$ \\a\nc\n";
    let mut steps = built(text, &[]).unwrap().1;
    let Action::Copy(second) = steps.pop().unwrap().action else { panic!() };
    let Action::Copy(first) = steps.pop().unwrap().action else { panic!() };
    assert_eq!(first.spec.inline[0].content, "\n");
    assert_eq!(first.spec.inline[1].content, "\\\n");
    assert_eq!(second.spec.inline[0].content, "\\ $ a\n");
}

#[test]
fn values_that_make_no_sense_are_told() {
    for text in [
        "EXPOSE x",
        "EXPOSE 70000",
        "STOPSIGNAL SIGWHAT",
        "USER ${x:?none}",
        "COPY a b /c",
        "COPY --chmod=u+x a b",
        "ENV a=${",
        "VOLUME [\"\"]",
    ] {
        assert!(built(&format!("FROM scratch\n{text}\n"), &[]).is_err(), "{text}");
    }
}
