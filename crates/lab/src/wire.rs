//! What the lab and the init of its emulated host say to each other.
//!
//! Before the boot, a [`Job`] in the initramfs; from then on, [`Frame`]s over a virtio-serial port. If a person has the
//! command at a terminal, [`Typed`] comes the other way.

use std::io::{self, Read, Write};

use crate::names::Seat;

/// The port's name.
pub const PORT: &str = "skep.lab";

/// Where the job lies in the initramfs.
pub const JOB_PATH: &str = "/lab/job";

/// The word on the kernel's command line that makes init the host's rather than a guest's.
pub const HOST_WORD: &str = "lab.host";

/// How often init says that the host is alive.
pub const BEAT: std::time::Duration = std::time::Duration::from_secs(3);

/// The longest payload of a frame, in bytes.
const PAYLOAD_LIMIT: usize = 1 << 20;

/// Something that init says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// Init runs; the text names the kernel.
    Hello(String),
    /// The host is set up and the command starts now.
    Started,
    /// The command wrote to its standard output.
    Stdout(Vec<u8>),
    /// The command wrote to its standard error.
    Stderr(Vec<u8>),
    /// The command ended with this status; everything it wrote came before.
    Exit(i32),
    /// Something that is worth a line when one looks closely.
    Note(String),
    /// The host cannot do what it was asked.
    Failure(String),
    /// Init had a turn on a CPU: the host lives, whether or not the command writes anything.
    Alive,
}

impl Frame {
    fn kind(&self) -> u8 {
        match self {
            Frame::Hello(_) => b'H',
            Frame::Started => b'S',
            Frame::Stdout(_) => b'O',
            Frame::Stderr(_) => b'E',
            Frame::Exit(_) => b'X',
            Frame::Note(_) => b'N',
            Frame::Failure(_) => b'F',
            Frame::Alive => b'A',
        }
    }

    /// Writes the frame: its kind, its length (32 bits, little endian), its payload.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn write(&self, to: &mut impl Write) -> io::Result<()> {
        let status;
        let payload: &[u8] = match self {
            Frame::Hello(text) | Frame::Note(text) | Frame::Failure(text) => text.as_bytes(),
            Frame::Stdout(bytes) | Frame::Stderr(bytes) => bytes,
            Frame::Exit(code) => {
                status = code.to_le_bytes();
                &status
            }
            Frame::Started | Frame::Alive => &[],
        };
        write(self.kind(), payload, to)
    }

    /// Reads the next frame.
    ///
    /// # Errors
    /// Those of the reader; `InvalidData` for what is no frame.
    pub fn read(from: &mut impl Read) -> io::Result<Frame> {
        let (kind, payload) = read(from)?;
        let text = |payload: Vec<u8>| String::from_utf8_lossy(&payload).into_owned();
        Ok(match kind {
            b'H' => Frame::Hello(text(payload)),
            b'S' => Frame::Started,
            b'O' => Frame::Stdout(payload),
            b'E' => Frame::Stderr(payload),
            b'X' => {
                let code = payload.try_into().map_err(|_| invalid("a status that is not 32 bits".into()))?;
                Frame::Exit(i32::from_le_bytes(code))
            }
            b'N' => Frame::Note(text(payload)),
            b'F' => Frame::Failure(text(payload)),
            b'A' => Frame::Alive,
            other => return Err(invalid(format!("a frame of kind {other:#x}"))),
        })
    }
}

/// How large a person's terminal is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScreenSize {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub columns: u16,
}

/// The terminal that the command is to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Screen {
    /// Its kind, as `$TERM` says it.
    pub kind: String,
    /// Its size when the command starts.
    pub size: ScreenSize,
}

/// Something that init hears from the person at the terminal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Typed {
    /// Keys, as a terminal in raw mode gives them.
    Bytes(Vec<u8>),
    /// The terminal has another size.
    Size(ScreenSize),
}

impl Typed {
    /// Writes it in the form of a frame.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn write(&self, to: &mut impl Write) -> io::Result<()> {
        match self {
            Typed::Bytes(bytes) => write(b'T', bytes, to),
            Typed::Size(ScreenSize { rows, columns }) => {
                let ([a, b], [c, d]) = (rows.to_le_bytes(), columns.to_le_bytes());
                write(b'Z', &[a, b, c, d], to)
            }
        }
    }

    /// Reads the next one.
    ///
    /// # Errors
    /// Those of the reader; `InvalidData` for what is none.
    pub fn read(from: &mut impl Read) -> io::Result<Typed> {
        let (kind, payload) = read(from)?;
        match (kind, payload.as_slice()) {
            (b'T', _) => Ok(Typed::Bytes(payload)),
            (b'Z', &[a, b, c, d]) => {
                let [rows, columns] = [[a, b], [c, d]].map(u16::from_le_bytes);
                Ok(Typed::Size(ScreenSize { rows, columns }))
            }
            _ => Err(invalid(format!("typing of kind {kind:#x} and {} bytes", payload.len()))),
        }
    }
}

/// Writes a kind, the payload's length (32 bits, little endian) and the payload, at once.
fn write(kind: u8, payload: &[u8], to: &mut impl Write) -> io::Result<()> {
    let length = u32::try_from(payload.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut whole = Vec::with_capacity(payload.len() + 5);
    whole.push(kind);
    whole.extend(length.to_le_bytes());
    whole.extend(payload);
    to.write_all(&whole)
}

/// Reads what [`write`] wrote.
fn read(from: &mut impl Read) -> io::Result<(u8, Vec<u8>)> {
    let mut header = [0; 5];
    from.read_exact(&mut header)?;
    let [kind, length @ ..] = header;
    let length = u32::from_le_bytes(length) as usize;
    if length > PAYLOAD_LIMIT {
        return Err(invalid(format!("a frame of {length} bytes")));
    }
    let mut payload = vec![0; length];
    from.read_exact(&mut payload)?;
    Ok((kind, payload))
}

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// A folder of the outer machine that the emulated host mounts by 9p.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// The name under which QEMU offers it.
    pub tag: String,
    /// Where the host mounts it.
    pub at: String,
    /// Whether the host may write to it.
    pub writable: bool,
}

/// What the emulated host is to do.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Job {
    /// The command and its arguments.
    pub command: Vec<String>,
    /// Folders to mount.
    pub mounts: Vec<Mount>,
    /// Where a mounted root becomes a writable tree of its own, if it is to.
    pub overlay: Option<String>,
    /// How many disks there will be.
    pub disks: usize,
    /// The devices that the command may name.
    pub seats: Vec<Seat>,
    /// The terminal of the person for whom it runs, if there is one.
    pub screen: Option<Screen>,
}

impl Job {
    /// The job as bytes: records of a key, `=`, a value and a zero byte.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut put = |key: &str, value: &str| {
            bytes.extend(key.bytes().chain(*b"=").chain(value.bytes()).chain(*b"\0"));
        };
        for word in &self.command {
            put("command", word);
        }
        for mount in &self.mounts {
            put(if mount.writable { "mount-rw" } else { "mount-ro" }, &format!("{}:{}", mount.tag, mount.at));
        }
        if let Some(overlay) = &self.overlay {
            put("overlay", overlay);
        }
        put("disks", &self.disks.to_string());
        for seat in &self.seats {
            put(if seat.behind_port { "port" } else { "slot" }, &format!("{}:{}", seat.slot, seat.name));
        }
        if let Some(Screen { kind, size: ScreenSize { rows, columns } }) = &self.screen {
            put("screen", &format!("{rows}x{columns}:{kind}"));
        }
        bytes
    }

    /// The job out of its bytes; what is not understood is an error that says so.
    ///
    /// # Errors
    /// `InvalidData` with the record that is not understood.
    pub fn decode(bytes: &[u8]) -> io::Result<Job> {
        let mut job = Job::default();
        for record in bytes.split(|b| *b == 0).filter(|record| !record.is_empty()) {
            let record = String::from_utf8_lossy(record).into_owned();
            let unknown = || invalid(format!("the job has a record {record:?}"));
            let (key, value) = record.split_once('=').ok_or_else(unknown)?;
            match key {
                "command" => job.command.push(value.to_owned()),
                "port" | "slot" => {
                    let (slot, name) = value.split_once(':').ok_or_else(unknown)?;
                    let slot = slot.parse().map_err(|_| unknown())?;
                    job.seats.push(Seat { name: name.into(), slot, behind_port: key == "port" });
                }
                "mount-rw" | "mount-ro" => {
                    let (tag, at) = value.split_once(':').ok_or_else(unknown)?;
                    let writable = key == "mount-rw";
                    job.mounts.push(Mount { tag: tag.to_owned(), at: at.to_owned(), writable });
                }
                "overlay" => job.overlay = Some(value.to_owned()),
                "screen" => job.screen = Some(screen(value).ok_or_else(unknown)?),
                "disks" => job.disks = value.parse().map_err(|_| unknown())?,
                _ => return Err(unknown()),
            }
        }
        Ok(job)
    }
}

/// A terminal out of `24x80:xterm`.
fn screen(text: &str) -> Option<Screen> {
    let (size, kind) = text.split_once(':')?;
    let (rows, columns) = size.split_once('x')?;
    let size = ScreenSize { rows: rows.parse().ok()?, columns: columns.parse().ok()? };
    Some(Screen { kind: kind.to_owned(), size })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_out_as_they_went_in() {
        let frames = [
            Frame::Hello("6.1".into()),
            Frame::Started,
            Frame::Stdout(vec![0, 255, 10]),
            Frame::Stderr(vec![]),
            Frame::Note("n".into()),
            Frame::Failure("f".into()),
            Frame::Alive,
            Frame::Exit(-3),
        ];
        let mut bytes = Vec::new();
        for frame in &frames {
            frame.write(&mut bytes).unwrap();
        }
        let mut rest = bytes.as_slice();
        for frame in &frames {
            assert_eq!(&Frame::read(&mut rest).unwrap(), frame);
        }
        assert_eq!(Frame::read(&mut rest).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn what_is_no_frame_is_an_error_and_takes_no_memory() {
        for bytes in [&b"?\0\0\0\0"[..], b"O\xff\xff\xff\xff", b"X\x01\0\0\0\0"] {
            assert_eq!(Frame::read(&mut &bytes[..]).unwrap_err().kind(), io::ErrorKind::InvalidData);
        }
    }

    #[test]
    fn typing_comes_out_as_it_went_in_and_what_is_none_is_an_error() {
        let typing = [Typed::Bytes(vec![3, 0, 255]), Typed::Size(ScreenSize { rows: 300, columns: 1 })];
        let mut bytes = Vec::new();
        typing.iter().for_each(|typed| typed.write(&mut bytes).unwrap());
        let mut rest = bytes.as_slice();
        typing.iter().for_each(|typed| assert_eq!(&Typed::read(&mut rest).unwrap(), typed));
        for bytes in [&b"O\0\0\0\0"[..], b"Z\x01\0\0\0\0", b"T\xff\xff\xff\xff"] {
            assert_eq!(Typed::read(&mut &bytes[..]).unwrap_err().kind(), io::ErrorKind::InvalidData);
        }
    }

    #[test]
    fn a_job_comes_out_as_it_went_in() {
        let job = Job {
            command: vec!["sh".into(), "-c".into(), "echo 'a=b'\necho c".into(), String::new()],
            mounts: vec![Mount { tag: "share".into(), at: "/share".into(), writable: true }],
            overlay: Some("/host".into()),
            disks: 3,
            seats: [("nvme0", 4, true), ("e1000e0", 23, false)]
                .map(|(name, slot, behind_port)| Seat { name: name.into(), slot, behind_port })
                .to_vec(),
            screen: Some(Screen { kind: "xterm:256".into(), size: ScreenSize { rows: 50, columns: 132 } }),
        };
        assert_eq!(Job::decode(&job.encode()).unwrap(), job);
    }
}
