//! Linux native AIO by raw system calls: enough of it to keep several reads or writes in flight.

use std::io;
use std::os::fd::RawFd;

/// `struct iocb` of include/uapi/linux/aio_abi.h, little endian.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Iocb {
    data: u64,
    key: u32,
    rw_flags: u32,
    opcode: u16,
    priority: i16,
    fd: u32,
    buffer: u64,
    length: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    eventfd: u32,
}

/// `IOCB_CMD_PREAD` and `IOCB_CMD_PWRITE`.
const PREAD: u16 = 0;
const PWRITE: u16 = 1;

/// Which way data goes, out of several pieces of memory or into them: `IOCB_CMD_PREADV` and `IOCB_CMD_PWRITEV`.
#[derive(Clone, Copy)]
#[repr(u16)]
pub enum Way {
    Read = 7,
    Write = 8,
}

/// `struct io_event` of the same file.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct IoEvent {
    data: u64,
    iocb: u64,
    result: i64,
    result2: i64,
}

/// A queue of reads and writes.
pub struct Queue {
    context: libc::c_ulong,
    fd: RawFd,
    control: Vec<Iocb>,
    events: Vec<IoEvent>,
}

impl Queue {
    /// A queue for `depth` transfers at once with this open file.
    pub fn new(fd: RawFd, depth: usize) -> io::Result<Queue> {
        let mut context: libc::c_ulong = 0;
        // SAFETY: io_setup writes the context's number, which lives through the call.
        if unsafe { libc::syscall(libc::SYS_io_setup, depth, &raw mut context) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Queue {
            context,
            fd,
            control: vec![Iocb::default(); depth],
            events: vec![IoEvent::default(); depth],
        })
    }

    /// Starts a read into slot `slot`, whose buffer is `buffer`.
    ///
    /// # Safety
    /// The buffer has `length` bytes, and stays mapped and untouched until the slot's read is reaped.
    pub unsafe fn read(
        &mut self,
        slot: usize,
        buffer: *mut u8,
        length: usize,
        offset: u64,
    ) -> io::Result<()> {
        // SAFETY: the caller's promise is ours.
        unsafe { self.submit(slot, PREAD, buffer, length, offset) }
    }

    /// Starts a write out of slot `slot`, whose buffer is `buffer`.
    ///
    /// # Safety
    /// The buffer has `length` bytes, and stays mapped and unchanged until the slot's write is reaped.
    pub unsafe fn write(
        &mut self,
        slot: usize,
        buffer: *mut u8,
        length: usize,
        offset: u64,
    ) -> io::Result<()> {
        // SAFETY: the caller's promise is ours.
        unsafe { self.submit(slot, PWRITE, buffer, length, offset) }
    }

    /// # Safety
    /// As for [`Queue::read`] and [`Queue::write`].
    unsafe fn submit(
        &mut self,
        slot: usize,
        opcode: u16,
        buffer: *mut u8,
        length: usize,
        offset: u64,
    ) -> io::Result<()> {
        let control = &mut self.control[slot];
        *control = Iocb {
            data: slot as u64,
            opcode,
            fd: self.fd.cast_unsigned(),
            buffer: buffer as u64,
            length: length as u64,
            offset: offset.cast_signed(),
            ..Iocb::default()
        };
        let mut pointer: *mut Iocb = control;
        // SAFETY: one pointer to a control block that lives as long as the queue; the buffer is the caller's
        // promise.
        let n = unsafe { libc::syscall(libc::SYS_io_submit, self.context, 1_i64, &raw mut pointer) };
        if n == 1 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Starts all these transfers together, one in each slot, and waits for them: how many bytes each has moved. Each
    /// has its pieces of memory and its place in the file.
    ///
    /// # Safety
    /// The pieces are mapped, and nobody else touches them until this returns; after an error, until the queue is
    /// dropped.
    pub unsafe fn all(
        &mut self,
        way: Way,
        transfers: &[(Vec<libc::iovec>, u64)],
    ) -> io::Result<Vec<io::Result<usize>>> {
        for (slot, (pieces, offset)) in transfers.iter().enumerate() {
            self.control[slot] = Iocb {
                data: slot as u64,
                opcode: way as u16,
                fd: self.fd.cast_unsigned(),
                buffer: pieces.as_ptr() as u64,
                length: pieces.len() as u64,
                offset: offset.cast_signed(),
                ..Iocb::default()
            };
        }
        let mut pointers: Vec<*mut Iocb> =
            self.control[..transfers.len()].iter_mut().map(std::ptr::from_mut).collect();
        while !pointers.is_empty() {
            // SAFETY: the pointers are to control blocks that live as long as the queue; the pieces are the caller's
            // promise.
            let n = unsafe {
                libc::syscall(libc::SYS_io_submit, self.context, pointers.len(), pointers.as_mut_ptr())
            };
            let n = usize::try_from(n).map_err(|_| io::Error::last_os_error())?;
            pointers.drain(..n);
        }
        let mut moved: Vec<Option<io::Result<usize>>> = transfers.iter().map(|_| None).collect();
        while moved.iter().any(Option::is_none) {
            for (slot, result) in self.reap()? {
                moved[slot] = Some(result);
            }
        }
        Ok(moved.into_iter().flatten().collect())
    }

    /// Waits for at least one transfer to end; their slots and how many bytes they moved.
    pub fn reap(&mut self) -> io::Result<Vec<(usize, io::Result<usize>)>> {
        let most = self.events.len();
        // SAFETY: the kernel writes at most `most` events to a vector of that length.
        let n = unsafe {
            libc::syscall(
                libc::SYS_io_getevents,
                self.context,
                1_i64,
                most,
                self.events.as_mut_ptr(),
                0_usize,
            )
        };
        let n = match usize::try_from(n) {
            Ok(n) => n,
            Err(_) if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => 0,
            Err(_) => return Err(io::Error::last_os_error()),
        };
        let ended = self.events[..n].iter().map(|event| {
            // Errors are negative errno values, which fit.
            let result =
                usize::try_from(event.result).map_err(|_| io::Error::from_raw_os_error(-event.result as i32));
            (event.data as usize, result)
        });
        Ok(ended.collect())
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // SAFETY: the context is ours; io_destroy waits until the kernel touches no buffer any more.
        unsafe { libc::syscall(libc::SYS_io_destroy, self.context) };
    }
}
