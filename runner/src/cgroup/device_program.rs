//! Rules for devices in the unified hierarchy: a small program that the kernel asks at every use of a device.
//!
//! The rules are tried from the last to the first, and the first that applies decides: later rules override
//! earlier ones, as in a legacy hierarchy. An access that is allowed by two rules in part only is refused.

use std::fs::File;
use std::io;
use std::path::Path;

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

use crate::sys::bpf::{Instruction, attach_device_program, load_device_program};

// BPF_DEVCG_* of linux/bpf.h.
const BLOCK: i32 = 1;
const CHARACTER: i32 = 2;
const MKNOD: i32 = 1;
const READ: i32 = 2;
const WRITE: i32 = 4;
const ALL: i32 = MKNOD | READ | WRITE;

// Registers: the context, then what is read from it.
const RESULT: u8 = 0;
const CONTEXT: u8 = 1;
const SCRATCH: u8 = 1;
const TYPE: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

// Operations (linux/bpf.h, linux/bpf_common.h).
const LOAD_WORD: u8 = 0x61;
const MOVE: u8 = 0xbf;
const MOVE_CONSTANT: u8 = 0xb7;
const AND_CONSTANT: u8 = 0x57;
const SHIFT_RIGHT_CONSTANT: u8 = 0x77;
const JUMP_IF_EQUAL: u8 = 0x15;
const JUMP_IF_NOT_EQUAL: u8 = 0x55;
const EXIT: u8 = 0x95;

/// Puts `rules` in force for the processes of the cgroup at `path`.
pub(super) fn attach(path: &Path, rules: &[LinuxDeviceCgroup]) -> io::Result<()> {
    let program = load_device_program(&compile(rules))?;
    attach_device_program(File::open(path)?, &program)
}

fn compile(rules: &[LinuxDeviceCgroup]) -> Vec<Instruction> {
    // The context is {access << 16 | type, major, minor}, four bytes each.
    let mut program = vec![
        operation(LOAD_WORD, TYPE, CONTEXT, 0, 0),
        operation(LOAD_WORD, MAJOR, CONTEXT, 4, 0),
        operation(LOAD_WORD, MINOR, CONTEXT, 8, 0),
        operation(MOVE, ACCESS, TYPE, 0, 0),
        operation(SHIFT_RIGHT_CONSTANT, ACCESS, 0, 0, 16),
        operation(AND_CONSTANT, TYPE, 0, 0, 0xffff),
    ];
    for rule in rules.iter().rev() {
        let conditions = conditions(rule);
        let is_last = conditions.is_empty();
        program.extend(conditions);
        program.extend(answer(rule.allow()));
        if is_last {
            // The kernel refuses programs with instructions that cannot be reached.
            return program;
        }
    }
    program.extend(answer(true));
    program
}

fn operation(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction { code, registers: destination | source << 4, offset, immediate }
}

fn answer(allow: bool) -> [Instruction; 2] {
    [operation(MOVE_CONSTANT, RESULT, 0, 0, i32::from(allow)), operation(EXIT, 0, 0, 0, 0)]
}

/// Code that falls through when the rule applies and passes over its answer when not; none for a rule that
/// always applies.
fn conditions(rule: &LinuxDeviceCgroup) -> Vec<Instruction> {
    let mut code = Vec::new();
    match rule.typ() {
        None | Some(LinuxDeviceType::A) => {}
        Some(LinuxDeviceType::B) => code.push(operation(JUMP_IF_NOT_EQUAL, TYPE, 0, 0, BLOCK)),
        Some(LinuxDeviceType::C | LinuxDeviceType::U | LinuxDeviceType::P) => {
            code.push(operation(JUMP_IF_NOT_EQUAL, TYPE, 0, 0, CHARACTER));
        }
    }
    let access = access_of(rule);
    if access != ALL {
        code.push(operation(MOVE, SCRATCH, ACCESS, 0, 0));
        if rule.allow() {
            // Nothing may be asked for beyond it.
            code.push(operation(AND_CONSTANT, SCRATCH, 0, 0, ALL & !access));
            code.push(operation(JUMP_IF_NOT_EQUAL, SCRATCH, 0, 0, 0));
        } else {
            // Anything of it refuses the whole.
            code.push(operation(AND_CONSTANT, SCRATCH, 0, 0, access));
            code.push(operation(JUMP_IF_EQUAL, SCRATCH, 0, 0, 0));
        }
    }
    for (register, number) in [(MAJOR, rule.major()), (MINOR, rule.minor())] {
        // Negative, or none, is any number.
        if let Some(number) =
            number.and_then(|number| i32::try_from(number).ok()).filter(|number| *number >= 0)
        {
            code.push(operation(JUMP_IF_NOT_EQUAL, register, 0, 0, number));
        }
    }
    // Every jump leads behind the answer, which is two instructions long.
    let length = code.len();
    for (index, instruction) in code.iter_mut().enumerate() {
        if matches!(instruction.code, JUMP_IF_EQUAL | JUMP_IF_NOT_EQUAL) {
            instruction.offset = i16::try_from(length - index + 1).unwrap_or(i16::MAX);
        }
    }
    code
}

fn access_of(rule: &LinuxDeviceCgroup) -> i32 {
    let Some(words) = rule.access().as_deref().filter(|access| !access.is_empty()) else { return ALL };
    words.chars().fold(0, |bits, word| {
        bits | match word {
            'm' => MKNOD,
            'r' => READ,
            'w' => WRITE,
            _ => 0,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::default_spec::{DefaultSpec, default_spec};

    /// Runs the program as the kernel does.
    fn allows(program: &[Instruction], kind: i32, major: u32, minor: u32, access: i32) -> bool {
        let context = [(access << 16 | kind) as u32, major, minor];
        let mut registers = [0_u64; 11];
        let mut at = 0;
        loop {
            let instruction = program[at];
            let (to, from) =
                (usize::from(instruction.registers & 15), usize::from(instruction.registers >> 4));
            let constant = instruction.immediate as i64 as u64;
            at += 1;
            match instruction.code {
                LOAD_WORD => registers[to] = u64::from(context[instruction.offset as usize / 4]),
                MOVE => registers[to] = registers[from],
                MOVE_CONSTANT => registers[to] = constant,
                AND_CONSTANT => registers[to] &= constant,
                SHIFT_RIGHT_CONSTANT => registers[to] >>= constant,
                JUMP_IF_EQUAL if registers[to] == constant => at += instruction.offset as usize,
                JUMP_IF_NOT_EQUAL if registers[to] != constant => at += instruction.offset as usize,
                JUMP_IF_EQUAL | JUMP_IF_NOT_EQUAL => {}
                EXIT => return registers[usize::from(RESULT)] == 1,
                code => panic!("operation {code:#x}"),
            }
        }
    }

    fn default_rules() -> Vec<LinuxDeviceCgroup> {
        let spec = default_spec(&DefaultSpec::default());
        spec.linux().as_ref().unwrap().resources().as_ref().unwrap().devices().clone().unwrap()
    }

    #[test]
    fn the_default_rules() {
        let program = compile(&default_rules());
        assert!(allows(&program, CHARACTER, 1, 3, READ | WRITE), "null");
        assert!(allows(&program, CHARACTER, 136, 7, READ | WRITE), "a terminal");
        assert!(allows(&program, BLOCK, 8, 0, MKNOD), "making a disk's node");
        assert!(!allows(&program, BLOCK, 8, 0, READ), "reading a disk");
        assert!(!allows(&program, CHARACTER, 1, 1, READ), "mem");
        assert!(!allows(&program, CHARACTER, 10, 229, READ | WRITE), "fuse");
        assert!(!allows(&program, BLOCK, 1, 3, READ), "a block device with null's number");
    }

    #[test]
    fn later_rules_override_earlier_ones() {
        let rules = |json: &str| compile(&serde_json::from_str::<Vec<_>>(json).unwrap());
        let program = rules(
            r#"[{"allow":false},{"allow":true,"type":"c","major":5},
                {"allow":false,"type":"c","major":5,"minor":1,"access":"w"}]"#,
        );
        assert!(allows(&program, CHARACTER, 5, 0, READ | WRITE));
        assert!(allows(&program, CHARACTER, 5, 1, READ));
        assert!(!allows(&program, CHARACTER, 5, 1, READ | WRITE));
        assert!(!allows(&program, CHARACTER, 6, 0, READ));
        assert!(allows(&rules("[]"), BLOCK, 8, 0, READ | WRITE));
        assert!(!allows(&rules(r#"[{"allow":true,"type":"c"},{"allow":false}]"#), CHARACTER, 1, 3, READ));
    }

    #[test]
    fn the_kernel_takes_the_program() {
        match load_device_program(&compile(&default_rules())) {
            Ok(_) => {}
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
                let promised =
                    std::env::var_os("LAYERFS_TEST_ALL_PRIVILEGES").is_some_and(|value| value == "1");
                assert!(!promised, "all privileges are promised, but programs cannot be loaded: {error}");
                eprintln!("SKIPPED the_kernel_takes_the_program: {error}");
            }
            Err(error) => panic!("the kernel refused the program: {error}"),
        }
    }
}
