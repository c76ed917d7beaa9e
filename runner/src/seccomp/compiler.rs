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
///
/// It is written from its end to its beginning: jumps lead forward only, so that where they lead is known by then. Equal
/// answers within the reach of a jump are one instruction: the kernel checks, translates and copies each of them at every
/// start of a container and of every program that is executed in one.
pub(super) fn program(sections: &[Section], default: Answer) -> Option<Vec<Instruction>> {
    let mut code = Backwards::default();
    let mut next = code.answer(Answer(libc::SECCOMP_RET_KILL_PROCESS));
    for section in sections.iter().rev() {
        let mut body = search(&mut code, &ranges(section, default))?;
        if section.refuses_x32 {
            let x32 = if default.refuses() { default } else { Answer(libc::SECCOMP_RET_ERRNO | 38) };
            let refused = code.answer(x32);
            body = code.branch(JUMP_AT_LEAST, X32_BIT, refused, body)?;
        }
        body = code.before(body, operation(LOAD, NUMBER))?;
        next = code.branch(JUMP_EQUAL, section.audit, body, next)?;
    }
    code.before(next, operation(LOAD, ARCHITECTURE))?;
    code.finish()
}

/// Where an instruction is, counted from the end of the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place(usize);

/// A program, its last instruction first.
#[derive(Debug, Default)]
struct Backwards {
    code: Vec<Instruction>,
    /// The foremost instruction that gives an answer.
    answers: BTreeMap<u32, Place>,
}

impl Backwards {
    fn push(&mut self, instruction: Instruction) -> Place {
        self.code.push(instruction);
        Place(self.code.len() - 1)
    }

    /// How many instructions the next one would have to pass over to come to `place`.
    fn distance(&self, place: Place) -> usize {
        self.code.len() - 1 - place.0
    }

    /// A place that gives the answer, within the reach of what is written next (and next but one).
    fn answer(&mut self, answer: Answer) -> Place {
        if let Some(place) = self.answers.get(&answer.0).copied()
            && self.distance(place) + 2 < usize::from(u8::MAX)
        {
            return place;
        }
        let place = self.push(operation(RETURN, answer.0));
        self.answers.insert(answer.0, place);
        place
    }

    /// `place`, or one within reach that leads there.
    fn near(&mut self, place: Place) -> Option<Place> {
        let distance = self.distance(place);
        // The one for the other target of the same jump may come between.
        if distance + 1 < usize::from(u8::MAX) {
            return Some(place);
        }
        // An answer again is as short as a jump to it.
        match self.code.get(place.0).filter(|there| there.code == RETURN).map(|there| there.constant) {
            Some(answer) => Some(self.answer(Answer(answer))),
            None => Some(self.push(operation(JUMP, u32::try_from(distance).ok()?))),
        }
    }

    /// Goes on at `then` where the comparison holds, else at `or`.
    fn branch(&mut self, code: u16, constant: u32, then: Place, or: Place) -> Option<Place> {
        let (then, or) = (self.near(then)?, self.near(or)?);
        let offset = |place| u8::try_from(self.distance(place)).ok();
        let branch = jump(code, constant, offset(then)?, offset(or)?);
        Some(self.push(branch))
    }

    /// `instruction`, and then on at `place`.
    fn before(&mut self, place: Place, instruction: Instruction) -> Option<Place> {
        let distance = self.distance(place);
        if distance > 0 {
            self.push(operation(JUMP, u32::try_from(distance).ok()?));
        }
        Some(self.push(instruction))
    }

    /// A piece of code that leads nowhere else.
    fn piece(&mut self, piece: Vec<Instruction>) -> Option<Place> {
        self.code.extend(piece.into_iter().rev());
        self.code.len().checked_sub(1).map(Place)
    }

    fn finish(mut self) -> Option<Vec<Instruction>> {
        self.code.reverse();
        (self.code.len() <= LENGTH_MAX).then_some(self.code)
    }
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
fn search(code: &mut Backwards, ranges: &[Range]) -> Option<Place> {
    match ranges {
        [] => None,
        [Range { rules, .. }] => match &rules[..] {
            [Rule { conditions, answer }] if conditions.is_empty() => Some(code.answer(*answer)),
            rules => {
                let mut piece = Vec::new();
                decide(&mut piece, rules)?;
                code.piece(piece)
            }
        },
        _ => {
            let (lower, upper) = ranges.split_at(ranges.len() / 2);
            let first = upper.first()?.first;
            let upper = search(code, upper)?;
            let lower = search(code, lower)?;
            code.branch(JUMP_AT_LEAST, first, upper, lower)
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
