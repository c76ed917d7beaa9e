//! Memory that a process will not need again.
#![allow(unsafe_code)]

use std::hint::black_box;

/// What a deep call before this one may have touched of the stack: reading a command line takes some 200 KiB.
const STACK: usize = 512 * 1024;
/// Below the frame of this function: room for the calls that it makes, and what signals put there.
const NEAR: usize = 16 * 1024;
/// No kernel has larger pages.
const PAGE_MAX: usize = 64 * 1024;

/// Gives what is free of the heap, and what is not in use of the calling thread's stack, back to the kernel. To be called
/// on the process's first thread: its stack is followed by a gap of a MiB at least (`stack_guard_gap`), so that what is
/// given back here is the stack's.
pub(crate) fn give_back() {
    // SAFETY: malloc_trim takes any number, and gives back only what nobody has.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0)
    };
    let frame = 0_u8;
    let top = (std::ptr::from_ref(black_box(&frame)) as usize).saturating_sub(NEAR) & !(PAGE_MAX - 1);
    let bottom = top.saturating_sub(STACK);
    // SAFETY: the stack grows downwards, and the range is below all frames that are in use by more than any call made
    // here needs: nothing in it will be read before it is written. What of it was never the stack's is not mapped (see
    // above), which the call reports when it has done the rest; that is ignored.
    unsafe { libc::madvise(bottom as *mut libc::c_void, STACK, libc::MADV_DONTNEED) };
}

#[cfg(test)]
mod tests {
    /// Touches a good part of the stack below.
    #[inline(never)]
    fn deep() -> u64 {
        let mut array = [0_u64; 32 * 1024];
        for (at, value) in std::hint::black_box(&mut array).iter_mut().enumerate() {
            *value = at as u64;
        }
        std::hint::black_box(&array).iter().sum()
    }

    /// The stack of a test's thread is a mapping of 2 MiB, of which this uses the first pages.
    #[test]
    fn the_stack_is_used_again_after_it_was_given_back() {
        let kept = vec![String::from("what is in use"); 100];
        let sum = deep();
        super::give_back();
        assert_eq!(deep(), sum);
        super::give_back();
        assert!(kept.iter().all(|text| text == "what is in use"));
    }
}
