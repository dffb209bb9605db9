//! The time that a batch of requests takes, by criterion: `cargo bench -p benches`.

use benches::{Load, Rig, Way};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

fn requests(criterion: &mut Criterion) {
    let path = std::path::PathBuf::from(format!("/dev/shm/skep-bench-{}", std::process::id()));
    for load in Load::ALL {
        let mut group = criterion.benchmark_group(load.name());
        group.throughput(Throughput::Elements(u64::from(load.depth())));
        for (name, way) in Way::ALL {
            let mut rig = Rig::new(&path, way).expect("a disk in /dev/shm");
            group.bench_function(name, |bencher| {
                bencher.iter(|| rig.run(load, u64::from(load.depth())).expect("requests succeed"));
            });
        }
        group.finish();
    }
    std::fs::remove_file(&path).expect("the file is ours");
}

criterion_group!(disk, requests);
criterion_main!(disk);
