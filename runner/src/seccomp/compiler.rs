//! Rules to a program of the kernel's packet filter.

use std::collections::BTreeMap;

use super::architecture::X32_BIT;
use crate::sys::seccomp::Instruction;

/// `BPF_MAXINSNS` of linux/bpf_common.h.
const LENGTH_MAX: usize = 4096;

// Operations (linux/bpf_common.h).
const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_ABOVE: u16 = 0x25;
const JUMP_AT_LEAST: u16 = 0x35;
const RETURN: u16 = 0x06;

// `struct seccomp_data`, on a little-endian machine.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

/// `SECCOMP_RET_*` with its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Answer(pub(super) u32);

impl Answer {
    /// The kernel's order: the smaller goes before.
    pub(super) fn strictness(self) -> i32 {
        (self.0 & 0xffff_0000).cast_signed()
    }

    fn refuses(self) -> bool {
        self.strictness() <= (libc::SECCOMP_RET_ERRNO).cast_signed()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Comparison {
    NotEqual,
    Below,
    AtMost,
    Equal,
    AtLeast,
    Above,
    Masked { mask: u64 },
}

/// What must hold of one argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Condition {
    pub(super) argument: u8,
    pub(super) comparison: Comparison,
    pub(super) value: u64,
}

/// All conditions hold: this answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) conditions: Vec<Condition>,
    pub(super) answer: Answer,
}

/// The rules of one architecture.
#[derive(Debug)]
pub(super) struct Section {
    pub(super) audit: u32,
    /// Numbers with the bit of x32 are refused, whatever the rules say.
    pub(super) refuses_x32: bool,
    /// By number; a call's rules in the order in which they are tried.
    pub(super) calls: BTreeMap<u32, Vec<Rule>>,
}

/// The whole program; `None` when it is too long.
pub(super) fn program(sections: &[Section], default: Answer) -> Option<Vec<Instruction>> {
    let mut program = vec![operation(LOAD, ARCHITECTURE)];
    for section in sections {
        let mut body = vec![operation(LOAD, NUMBER)];
        if section.refuses_x32 {
            let x32 = if default.refuses() { default } else { Answer(libc::SECCOMP_RET_ERRNO | 38) };
            body.push(jump(JUMP_AT_LEAST, X32_BIT, 0, 1));
            body.push(operation(RETURN, x32.0));
        }
        search(&mut body, &ranges(section, default))?;
        program.push(jump(JUMP_EQUAL, section.audit, 1, 0));
        program.push(operation(JUMP, u32::try_from(body.len()).ok()?));
        program.extend(body);
    }
    program.push(operation(RETURN, libc::SECCOMP_RET_KILL_PROCESS));
    (program.len() <= LENGTH_MAX).then_some(program)
}

/// What is done from a number on, up to the next range.
struct Range {
    first: u32,
    rules: Vec<Rule>,
}

/// The whole space of numbers in ranges of equal treatment, the first of which begins at 0.
fn ranges(section: &Section, default: Answer) -> Vec<Range> {
    let otherwise = || vec![Rule { conditions: Vec::new(), answer: default }];
    let mut ranges = vec![Range { first: 0, rules: otherwise() }];
    let mut add = |first: u32, rules: Vec<Rule>| match ranges.last_mut() {
        Some(last) if last.first == first => last.rules = rules,
        Some(last) if last.rules == rules => {}
        _ => ranges.push(Range { first, rules }),
    };
    for (number, rules) in &section.calls {
        let mut rules = rules.clone();
        // Behind a rule that always applies there is nothing.
        match rules.iter().position(|rule| rule.conditions.is_empty()) {
            Some(last) => rules.truncate(last + 1),
            None => rules.extend(otherwise()),
        }
        add(*number, rules);
        add(number + 1, otherwise());
    }
    ranges
}

/// Finds the range of the number that is loaded, by halves.
fn search(program: &mut Vec<Instruction>, ranges: &[Range]) -> Option<()> {
    match ranges {
        [] => Some(()),
        [range] => decide(program, &range.rules),
        _ => {
            let (lower, upper) = ranges.split_at(ranges.len() / 2);
            let mut below = Vec::new();
            search(&mut below, lower)?;
            // Offsets of conditional jumps are short; the plain one is not.
            program.push(jump(JUMP_AT_LEAST, upper.first()?.first, 0, 1));
            program.push(operation(JUMP, u32::try_from(below.len()).ok()?));
            program.extend(below);
            search(program, upper)
        }
    }
}

fn decide(program: &mut Vec<Instruction>, rules: &[Rule]) -> Option<()> {
    for rule in rules {
        let mut checks: Vec<Check> = Vec::new();
        for condition in &rule.conditions {
            check(&mut checks, condition);
        }
        let length = checks.len();
        for (at, check) in checks.into_iter().enumerate() {
            // Behind the rule's answer.
            let miss = u8::try_from(length - at).ok()?;
            let place = |target: Target| match target {
                Target::Skip(count) => count,
                Target::Miss => miss,
            };
            program.push(match check {
                Check::Plain(instruction) => instruction,
                Check::Jump { code, constant, then, or } => jump(code, constant, place(then), place(or)),
            });
        }
        program.push(operation(RETURN, rule.answer.0));
    }
    Some(())
}

#[derive(Clone, Copy)]
enum Target {
    /// Pass over so many.
    Skip(u8),
    /// The rule does not apply.
    Miss,
}

enum Check {
    Plain(Instruction),
    Jump { code: u16, constant: u32, then: Target, or: Target },
}

/// Code that falls through when the condition holds. Arguments are compared in halves, the upper one first.
fn check(checks: &mut Vec<Check>, condition: &Condition) {
    use Target::{Miss, Skip};
    let low_at = ARGUMENTS + u32::from(condition.argument) * 8;
    let halves = |value: u64| ((value >> 32) as u32, value as u32);
    let (high, low) = halves(condition.value);
    let load = |at| Check::Plain(operation(LOAD, at));
    let test = |code, constant, then, or| Check::Jump { code, constant, then, or };
    checks.push(load(low_at + 4));
    match condition.comparison {
        Comparison::Equal => {
            checks.extend([
                test(JUMP_EQUAL, high, Skip(0), Miss),
                load(low_at),
                test(JUMP_EQUAL, low, Skip(0), Miss),
            ]);
        }
        Comparison::Masked { mask } => {
            let (mask_high, mask_low) = halves(mask);
            checks.extend([
                Check::Plain(operation(AND, mask_high)),
                test(JUMP_EQUAL, high, Skip(0), Miss),
                load(low_at),
                Check::Plain(operation(AND, mask_low)),
                test(JUMP_EQUAL, low, Skip(0), Miss),
            ]);
        }
        Comparison::NotEqual => {
            checks.extend([
                test(JUMP_EQUAL, high, Skip(0), Skip(2)),
                load(low_at),
                test(JUMP_EQUAL, low, Miss, Skip(0)),
            ]);
        }
        Comparison::Above | Comparison::AtLeast => {
            let code = if condition.comparison == Comparison::Above { JUMP_ABOVE } else { JUMP_AT_LEAST };
            checks.extend([
                test(JUMP_ABOVE, high, Skip(3), Skip(0)),
                test(JUMP_EQUAL, high, Skip(0), Miss),
                load(low_at),
                test(code, low, Skip(0), Miss),
            ]);
        }
        Comparison::Below | Comparison::AtMost => {
            let code = if condition.comparison == Comparison::Below { JUMP_AT_LEAST } else { JUMP_ABOVE };
            checks.extend([
                test(JUMP_ABOVE, high, Miss, Skip(0)),
                test(JUMP_EQUAL, high, Skip(0), Skip(2)),
                load(low_at),
                test(code, low, Miss, Skip(0)),
            ]);
        }
    }
}

fn operation(code: u16, constant: u32) -> Instruction {
    Instruction { code, then: 0, or: 0, constant }
}

fn jump(code: u16, constant: u32, then: u8, or: u8) -> Instruction {
    Instruction { code, then, or, constant }
}
