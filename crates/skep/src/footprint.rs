//! What the process keeps in memory once its VM is there: a start takes code and heap that nothing needs any more.

use std::ffi::{c_int, c_void};
use std::ptr::null_mut;

/// Lets go of the memory that only the start needed: the heap's free pages, and the mappings of the program's code and
/// constants, of which the kernel maps 16 pages around each that is touched. What runs on is mapped again as it is touched,
/// from the kernel's cache of files.
pub fn let_go_of_the_start() {
    // SAFETY: it gives free pages of the heap back, which no one has a pointer to.
    unsafe { libc::malloc_trim(0) };
    // SAFETY: `unmap_constants` has the signature that is asked for, and takes no data.
    unsafe { libc::dl_iterate_phdr(Some(unmap_constants), null_mut()) };
}

/// Unmaps the pages of the first object, which is the program, that come from its file and cannot be written to.
unsafe extern "C" fn unmap_constants(object: *mut libc::dl_phdr_info, _: usize, _: *mut c_void) -> c_int {
    const PAGE: usize = 4096;
    // SAFETY: the C library passes a valid description, which has so many headers.
    let (base, headers) = unsafe {
        let object = &*object;
        (object.dlpi_addr as usize, std::slice::from_raw_parts(object.dlpi_phdr, object.dlpi_phnum.into()))
    };
    let constant =
        |header: &&libc::Elf64_Phdr| header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W == 0;
    for header in headers.iter().filter(constant) {
        let start = base + header.p_vaddr as usize;
        let end = start + header.p_memsz as usize;
        // Whole pages: one at an edge may be a neighbour's, which may have been written to.
        let (first, last) = (start.next_multiple_of(PAGE), end / PAGE * PAGE);
        if first < last {
            // SAFETY: the program does not write to these pages, so each has its contents again, from the file, when it is
            // touched. If the kernel refuses, they stay mapped. (A debugger and uprobes do write breakpoints there, which
            // are lost: set them once the VM runs.)
            unsafe { libc::madvise(first as *mut c_void, last - first, libc::MADV_DONTNEED) };
        }
    }
    1 // not the libraries
}
