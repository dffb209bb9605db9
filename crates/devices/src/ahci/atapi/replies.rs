//! What a drive says of itself and its disc (SPC-4, MMC-6).

use super::{Action, CdDrive, Protocol, Sense, reply};

/// What has happened to the disc (MMC-6, 6.6.3.4).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Event {
    None = 0,
    EjectAsked = 1,
    NewMedia = 2,
    Removed = 3,
}

/// Media events among the classes of GET EVENT STATUS.
const MEDIA_CLASS: u8 = 4;
/// Profiles (MMC-6, 5.3.1).
const CD_ROM: u16 = 0x0008;
const DVD_ROM: u16 = 0x0010;
/// More blocks than any CD has.
const LARGER_THAN_A_CD: u32 = 405_000;
/// The number that lead-out goes by.
const LEAD_OUT: u8 = 0xaa;

impl CdDrive {
    /// IDENTIFY PACKET DEVICE (ACS-3, 7.13).
    pub(super) fn identify(&self) -> Vec<u8> {
        let mut words = [0u16; 256];
        let mut set = |first: usize, values: &[u16]| words[first..][..values.len()].copy_from_slice(values);
        // A CD drive whose disc can be taken, with packets of 12 bytes.
        set(0, &[0x85c0]);
        set(49, &[0x0f00, 0x4000]);
        set(53, &[0b110]);
        set(63, &[0x0007, 0x0003, 120, 120, 120, 120]);
        set(76, &[0b1110, 3 << 1]);
        set(80, &[0x07f0]);
        // PACKET, DEVICE RESET, power management, NOP.
        let features = 1 << 3 | 1 << 4 | 1 << 9 | 1 << 14;
        set(82, &[features, 0x4000, 0x4000, features, 0, 0x4000, 0x407f]);
        set(222, &[0x107f]);
        self.names.serial.put(&mut words[10..20]);
        self.names.firmware.put(&mut words[23..27]);
        self.names.model.put(&mut words[27..47]);
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    /// INQUIRY, and of its pages of vital product data the list and the serial number.
    pub(super) fn inquiry(&self, vital: bool, page: u8) -> Result<Vec<u8>, Sense> {
        match (vital, page) {
            (false, 0) => {
                // A CD drive; the disc can be taken; SPC-3; format 2, 31 bytes follow.
                let mut data = vec![0x05, 0x80, 0x05, 0x02, 31, 0, 0, 0];
                data.extend(b"SKEP    ");
                data.extend(&self.names.model.bytes()[..16]);
                data.extend(&self.names.firmware.bytes()[..4]);
                Ok(data)
            }
            (true, 0x00) => Ok(vec![0x05, 0x00, 0, 2, 0x00, 0x80]),
            (true, 0x80) => {
                let serial = self.names.serial.bytes();
                Ok([&[0x05, 0x80, 0, serial.len() as u8], &serial[..]].concat())
            }
            _ => Err(Sense::INVALID_FIELD),
        }
    }

    /// MODE SENSE: error recovery (01), and capabilities (2A).
    pub(super) fn mode_sense(&self, page: u8, long: bool) -> Result<Vec<u8>, Sense> {
        const RECOVERY: [u8; 8] = [0x01, 6, 0, 5, 0, 0, 0, 0];
        // Reads CD-R, CD-RW and DVD-ROM; locks; ejects; loads by a tray.
        const CAPABILITIES: [u8; 20] =
            [0x2a, 18, 0x0f, 0, 0x70, 0x00, 0x29, 0, 0x02, 0xc2, 0, 2, 0x02, 0, 0x02, 0xc2, 0, 0, 0, 0];
        if page >> 6 == 0b11 {
            // There are no saved values.
            return Err(Sense { key: 5, code: 0x39, qualifier: 0 });
        }
        let pages: Vec<u8> = match page & 0x3f {
            0x01 => RECOVERY.into(),
            0x2a => CAPABILITIES.into(),
            0x3f => [&RECOVERY[..], &CAPABILITIES].concat(),
            _ => return Err(Sense::INVALID_FIELD),
        };
        let mut data = if long {
            vec![0, (pages.len() + 6) as u8, 0, 0, 0, 0, 0, 0]
        } else {
            vec![(pages.len() + 3) as u8, 0, 0, 0]
        };
        data.extend(pages);
        Ok(data)
    }

    /// GET CONFIGURATION (MMC-6, 6.5): which profiles there are, and which one the disc has.
    pub(super) fn configuration(&self, kind: u8, first: u16) -> Result<Vec<u8>, Sense> {
        let current = match self.disc {
            None => 0,
            Some(blocks) if blocks > LARGER_THAN_A_CD => DVD_ROM,
            Some(_) => CD_ROM,
        };
        let profile = |number: u16| {
            let [high, low] = number.to_be_bytes();
            [high, low, u8::from(number == current), 0]
        };
        let disc = u8::from(self.disc.is_some());
        // Number, version with the bits "persistent" and "current", bytes that follow.
        let features: [(u16, Vec<u8>, bool); 5] = [
            (0x0000, [&[0, 0, 0x03, 8][..], &profile(DVD_ROM), &profile(CD_ROM)].concat(), true),
            (0x0001, vec![0, 1, 0x0b, 8, 0, 0, 0, 7, 1, 0, 0, 0], true),
            (0x0003, vec![0, 3, 0x07, 4, 0x29, 0, 0, 0], true),
            (0x0010, vec![0, 0x10, disc, 8, 0, 0, 8, 0, 0, 1, 0, 0], disc != 0),
            (0x001e, vec![0, 0x1e, 0x08 | u8::from(current == CD_ROM), 4, 0, 0, 0, 0], current == CD_ROM),
        ];
        let wanted = |number: u16, is_current: bool| match kind {
            0 => Ok(number >= first),
            1 => Ok(number >= first && is_current),
            2 => Ok(number == first),
            _ => Err(Sense::INVALID_FIELD),
        };
        let mut data = vec![0; 8];
        data[6..8].copy_from_slice(&current.to_be_bytes());
        for (number, feature, is_current) in features {
            if wanted(number, is_current)? {
                data.extend(feature);
            }
        }
        let follows = (data.len() - 4) as u32;
        data[..4].copy_from_slice(&follows.to_be_bytes());
        Ok(data)
    }

    /// GET EVENT STATUS NOTIFICATION (MMC-6, 6.6), to be asked again and again; an event is told once.
    pub(super) fn event_status(&mut self, polled: bool, classes: u8, wanted: usize) -> Result<Action, Sense> {
        if !polled {
            return Err(Sense::INVALID_FIELD);
        }
        if classes & 1 << MEDIA_CLASS == 0 {
            // None of these events is ever there.
            return Ok(reply(vec![0, 2, 0x80, 1 << MEDIA_CLASS], wanted));
        }
        let mut data = vec![0, 6, MEDIA_CLASS, 1 << MEDIA_CLASS];
        let (disc, open) = (u8::from(self.disc.is_some()) << 1, u8::from(self.disc.is_none()));
        data.extend([self.event as u8, disc | open, 0, 0]);
        if wanted >= data.len() {
            self.event = Event::None;
        }
        let answer = reply(data, wanted);
        debug_assert!(!matches!(answer, Action::Send(_, Protocol::Pio)));
        Ok(answer)
    }
}

/// READ TOC (MMC-6, 6.26): a single track of data.
pub(super) fn toc(blocks: u32, format: u8, minutes: bool, first: u8) -> Result<Vec<u8>, Sense> {
    let place = |block: u32| {
        if minutes {
            // The first block lies two seconds behind the beginning.
            let frames = block.saturating_add(150);
            [0, (frames / 75 / 60).min(255) as u8, (frames / 75 % 60) as u8, (frames % 75) as u8]
        } else {
            block.to_be_bytes()
        }
    };
    let track = |number: u8, at: u32| [&[0, 0x14, number, 0][..], &place(at)].concat();
    let mut data = match format {
        0 => {
            if first > 1 && first != LEAD_OUT {
                return Err(Sense::INVALID_FIELD);
            }
            let mut data = vec![0, 0, 1, 1];
            if first <= 1 {
                data.extend(track(1, 0));
            }
            data.extend(track(LEAD_OUT, blocks));
            data
        }
        // Sessions: one, whose first track is track 1.
        1 => [vec![0, 0, 1, 1], track(1, 0)].concat(),
        // All there is on the disc: first track, last track, lead-out, track 1.
        2 => {
            let entry = |point: u8, at: [u8; 4]| [&[1, 0x14, 0, point, 0, 0, 0][..], &at].concat();
            let place = |block| {
                let [zero, minute, second, frame] = if minutes { place(block) } else { block.to_be_bytes() };
                [zero, minute, second, frame]
            };
            [
                vec![0, 0, 1, 1],
                entry(0xa0, [0, 1, 0, 0]),
                entry(0xa1, [0, 1, 0, 0]),
                entry(0xa2, place(blocks)),
                entry(1, place(0)),
            ]
            .concat()
        }
        _ => return Err(Sense::INVALID_FIELD),
    };
    let follows = (data.len() - 2) as u16;
    data[..2].copy_from_slice(&follows.to_be_bytes());
    Ok(data)
}

/// READ DISC INFORMATION (MMC-6, 6.21): a finished disc of one session and one track.
pub(super) fn disc_information() -> Vec<u8> {
    let mut data = vec![0; 34];
    data[1] = 32;
    // Disc and last session are complete; first track, sessions, first and last track of the last session.
    data[2..7].copy_from_slice(&[0x0e, 1, 1, 1, 1]);
    data[7] = 0x20;
    // No lead-in to go on at, and no lead-out to end before.
    data[16..24].fill(0xff);
    data
}

/// READ TRACK INFORMATION (MMC-6, 6.27) of the only track.
pub(super) fn track_information(blocks: u32) -> Vec<u8> {
    let mut data = vec![0; 36];
    data[1] = 34;
    // Track 1 of session 1, of data, recorded without a break, in blocks of mode 1.
    data[2..7].copy_from_slice(&[1, 1, 0, 4, 1]);
    data[24..28].copy_from_slice(&blocks.to_be_bytes());
    data
}
