//! Memory from one NUMA node only.

use std::io;
use std::ptr::NonNull;

use crate::placement::Node;

/// Bits in a word of the kernel's node mask.
const WORD: u32 = libc::c_ulong::BITS;

/// The words that hold as many nodes as Linux can have on x86 (CONFIG_NODES_SHIFT is at most 10).
const WORDS: usize = 1024 / WORD as usize;

/// Makes all pages of a mapping of our own, none of which is present yet, come from one node (mbind(2)). What the
/// mapping's file gives to others comes from there, too.
pub(crate) fn bind(start: NonNull<u8>, len: u64, node: Node) -> io::Result<()> {
    let mut mask: [libc::c_ulong; WORDS] = [0; WORDS];
    let Some(word) = mask.get_mut((node.0 / WORD) as usize) else {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    };
    *word = 1 << (node.0 % WORD);
    // The kernel reads one bit less than the given number.
    let bits = WORDS * WORD as usize + 1;
    // SAFETY: the mask has the bits that are read; the range is a mapping of ours, whose content stays.
    let bound = unsafe {
        libc::syscall(libc::SYS_mbind, start.as_ptr(), len as usize, libc::MPOL_BIND, mask.as_ptr(), bits, 0)
    };
    match io::Error::last_os_error() {
        _ if bound == 0 => Ok(()),
        // A kernel without NUMA has all memory on node 0.
        error if error.raw_os_error() == Some(libc::ENOSYS) && node.0 == 0 => Ok(()),
        error => Err(error),
    }
}
