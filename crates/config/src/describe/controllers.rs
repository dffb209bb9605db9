//! What disks say together that share a controller.

use crate::finding::{Finding, Place, Problem};
use crate::model::{Disk, DiskModel, ModelName};
use crate::values::name::ControllerName;

/// Disks of a controller at most: a SATA controller has 32 ports (AHCI 1.3.1, 3.1.1), and an NVMe controller has no more
/// namespaces here.
const MOST: usize = 32;

/// Each disk that does not go with the others of its controller is a finding.
pub(super) fn check(disks: &[(Place, Disk)], findings: &mut Vec<Finding>) {
    for (n, (place, disk)) in disks.iter().enumerate() {
        let Some(controller) = &disk.controller else { continue };
        let before = disks[..n].iter().filter(|(_, before)| before.controller == disk.controller);
        let before: Vec<&(Place, Disk)> = before.collect();
        let problems = problems(controller, disk, &before);
        findings.extend(problems.into_iter().map(|problem| Finding { place: place.clone(), problem }));
    }
}

fn problems(controller: &ControllerName, disk: &Disk, before: &[&(Place, Disk)]) -> Vec<Problem> {
    let Some((first, of_first)) = before.first() else { return Vec::new() };
    let (model, other) = (disk.model.name(), of_first.model.name());
    if is_sata(model) != is_sata(other) {
        let (controller, first) = (controller.clone(), first.clone());
        return vec![Problem::OtherModel { controller, model, other, first }];
    }
    let mut problems = Vec::new();
    if before.len() == MOST {
        problems.push(Problem::ControllerFull { controller: controller.clone(), most: MOST });
    }
    if let DiskModel::Nvme { .. } = disk.model {
        problems.extend(of_controller(disk).into_iter().filter_map(|(key, value)| {
            let value = value?;
            let said = before.iter().find_map(|(place, before)| {
                let (_, said) = of_controller(before).into_iter().find(|(other, _)| *other == key)?;
                Some((place.clone(), said?))
            });
            let (first, other) = said.filter(|(_, said)| *said != value)?;
            Some(Problem::OneForAll { controller: controller.clone(), key, value, other, first })
        }));
    }
    problems
}

/// Hard disks and CD drives go on the same ports.
fn is_sata(model: ModelName) -> bool {
    matches!(model, ModelName::Ahci | ModelName::AhciCd)
}

/// What an NVMe controller has, and not each of its namespaces.
fn of_controller(disk: &Disk) -> [(&'static str, Option<String>); 4] {
    [
        ("queues", disk.model.queues().map(|queues| queues.to_string())),
        ("serial", disk.serial.as_ref().map(ToString::to_string)),
        ("product", disk.product.as_ref().map(ToString::to_string)),
        ("firmware", disk.firmware.as_ref().map(ToString::to_string)),
    ]
}
