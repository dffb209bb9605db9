//! What the controller says of itself: identify pages (5.15) and the log pages that never change.

use zerocopy::{FromZeros, IntoBytes};

use super::admin::BROADCAST;
use super::controller::MAX_EVENT_REQUESTS;
use super::data::MDTS;
use super::log::ERRORS;
use super::registers::VERSION;
use super::shared::Shared;
use super::spec::{Command, IdentifyController, IdentifyNamespace, PAGE, Status, admin, cns, io, log_page};
use super::{Identity, VENDOR};

/// Events that the driver can choose (feature 0Bh, OAES): a namespace changed; reliability is degraded.
pub(super) const EVENTS: u32 = 1 << 8 | 1 << 2;

/// Longest write of zeroes: as many blocks as a command can name, of 512 bytes, as a power of two of pages.
const WZSL: u8 = 13;

/// Admin commands that are implemented.
const ADMIN_COMMANDS: [u8; 11] = [
    admin::DELETE_SQ,
    admin::CREATE_SQ,
    admin::GET_LOG_PAGE,
    admin::DELETE_CQ,
    admin::CREATE_CQ,
    admin::IDENTIFY,
    admin::ABORT,
    admin::SET_FEATURES,
    admin::GET_FEATURES,
    admin::ASYNC_EVENT,
    admin::DOORBELL_BUFFER,
];
/// I/O commands that are implemented.
const IO_COMMANDS: [u8; 6] =
    [io::FLUSH, io::WRITE, io::READ, io::COMPARE, io::WRITE_ZEROES, io::DATASET_MANAGEMENT];

/// Whether any disk has a cache that writes may wait in.
pub(super) fn has_cache(shared: &Shared) -> bool {
    shared.namespaces.iter().any(|namespace| namespace.caches())
}

/// The page that an Identify command asks for.
pub(super) fn page(shared: &Shared, command: &Command) -> Result<Vec<u8>, Status> {
    let (cdw10, nsid) = (command.cdw10.get(), command.nsid.get());
    let (which, first_controller, command_set) = (cdw10 as u8, cdw10 >> 16, command.cdw11.get() >> 24);
    // A list of controllers from a number on: there is one, number 0.
    let controllers = padded(if first_controller == 0 { &[1, 0, 0, 0] } else { &[] });
    let page = PAGE as usize;
    let list = |from: u32| {
        let after = shared.namespaces.iter().map(|namespace| namespace.nsid).filter(|nsid| *nsid > from);
        let mut list: Vec<u8> = after.take(page / 4).flat_map(u32::to_le_bytes).collect();
        list.resize(page, 0);
        list
    };
    match which {
        // A namespace, active or allocated: there is no difference here.
        cns::NAMESPACE | 0x11 => match shared.namespace(nsid) {
            Some(namespace) => Ok(namespace.identify().as_bytes().to_vec()),
            None if nsid == BROADCAST && which == cns::NAMESPACE => {
                // What all namespaces have in common: nothing that matters.
                Ok(IdentifyNamespace::new_zeroed().as_bytes().to_vec())
            }
            None => Err(Status::INVALID_NAMESPACE),
        },
        cns::CONTROLLER => Ok(shared.identity.as_bytes().to_vec()),
        cns::ACTIVE_NAMESPACES | 0x10 if nsid >= BROADCAST - 1 => Err(Status::INVALID_NAMESPACE),
        cns::ACTIVE_NAMESPACES | 0x10 => Ok(list(nsid)),
        0x03 => {
            let namespace = shared.namespace(nsid).ok_or(Status::INVALID_NAMESPACE)?;
            Ok(padded(&namespace.descriptors()))
        }
        // Of the NVM command set: limits that the controller page has no room for.
        0x06 if command_set == 0 => Ok(padded(&[0, WZSL])),
        // Controllers that a namespace is attached to, or that there are.
        0x12 if shared.namespace(nsid).is_none() => Err(Status::INVALID_NAMESPACE),
        0x12 | 0x13 => Ok(controllers),
        _ => Err(Status::INVALID_FIELD),
    }
}

/// A page that begins with these bytes and goes on with zeroes.
fn padded(bytes: &[u8]) -> Vec<u8> {
    let mut whole = bytes.to_vec();
    whole.resize(PAGE as usize, 0);
    whole
}

/// Fills a field of ASCII: spaces behind the text.
fn text<const N: usize>(text: &str) -> [u8; N] {
    let mut field = [b' '; N];
    let printable = text.bytes().map(|byte| if (0x20..0x7f).contains(&byte) { byte } else { b'?' });
    field.iter_mut().zip(printable).for_each(|(to, from)| *to = from);
    field
}

/// Identify controller (5.15.2.2).
pub(super) fn controller(
    identity: &Identity,
    namespaces: u32,
    cache: bool,
    deallocates: bool,
) -> IdentifyController {
    let mut page = IdentifyController::new_zeroed();
    (page.vid, page.ssvid) = (VENDOR.into(), VENDOR.into());
    page.sn = text(&identity.serial);
    page.mn = text(&identity.model);
    page.fr = text(&identity.firmware);
    // The best number of commands at once, as a power of two.
    page.rab = 5;
    page.mdts = MDTS;
    page.ver = VERSION.into();
    page.oaes = (EVENTS & 1 << 8).into();
    // An I/O controller.
    page.cntrltype = 1;
    page.oacs = IdentifyController::DOORBELL_BUFFER.into();
    page.acl = 3;
    page.aerl = MAX_EVENT_REQUESTS as u8 - 1;
    // One firmware slot, read-only.
    page.frmw = 1 << 1 | 1;
    // Commands and effects; long log pages with offsets.
    page.lpa = 1 << 1 | 1 << 2;
    page.elpe = ERRORS as u8 - 1;
    page.wctemp = 0x0157.into();
    page.cctemp = 0x0175.into();
    (page.sqes, page.cqes) = (0x66, 0x44);
    page.nn = namespaces.into();
    let deallocate = if deallocates { IdentifyController::DATASET_MANAGEMENT } else { 0 };
    page.oncs = (IdentifyController::COMPARE | IdentifyController::WRITE_ZEROES | deallocate).into();
    // A flush is for one namespace.
    page.vwc = u8::from(cache) | 2 << 1;
    // SGLs, of any alignment.
    page.sgls = 1.into();
    let nqn = format!(
        "nqn.2014.08.org.nvmexpress:{VENDOR:04x}{VENDOR:04x}{}{}",
        String::from_utf8_lossy(&page.sn),
        String::from_utf8_lossy(&page.mn)
    );
    page.subnqn.iter_mut().zip(nqn.bytes()).for_each(|(to, from)| *to = from);
    // Power state 0: 1 W at most.
    page.psd0[..2].copy_from_slice(&100u16.to_le_bytes());
    page
}

/// Log page 00h: which log pages there are.
pub(super) fn supported_log_pages() -> Vec<u8> {
    let mut page = vec![0; 1024];
    for which in [
        log_page::SUPPORTED,
        log_page::ERROR,
        log_page::HEALTH,
        log_page::FIRMWARE,
        log_page::CHANGED_NAMESPACES,
        log_page::COMMANDS,
    ] {
        page[4 * usize::from(which)] = 1;
    }
    page
}

/// Log page 03h (5.14.1.3): slot 1 is active.
pub(super) fn firmware_slots() -> Vec<u8> {
    let mut page = vec![0; 512];
    page[0] = 1;
    page[8..16].copy_from_slice(&text::<8>(super::FIRMWARE));
    page
}

/// Log page 05h (5.14.1.5): which commands there are, and which change data.
pub(super) fn commands() -> Vec<u8> {
    let mut page = vec![0; PAGE as usize];
    ADMIN_COMMANDS.iter().for_each(|opcode| page[4 * usize::from(*opcode)] = 1);
    for opcode in IO_COMMANDS {
        let changes = matches!(opcode, io::WRITE | io::WRITE_ZEROES | io::DATASET_MANAGEMENT);
        page[1024 + 4 * usize::from(opcode)] = 1 | u8::from(changes) << 1;
    }
    page
}
