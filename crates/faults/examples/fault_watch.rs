//! Tells DMA faults of devices as they come, for some seconds: `fault_watch SECONDS RAM ADDRESS...`, where RAM is
//! the bytes of memory below 4 GiB that the devices may reach.

use std::time::{Duration, SystemTime};

use dma::Iova;
use faults::{Fault, Inputs, Place, Watch, Watched};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [seconds, ram, addresses @ ..] = arguments.as_slice() else {
        return Err("usage: fault_watch SECONDS RAM ADDRESS...".into());
    };
    let ram: u64 = ram.parse()?;
    let watched = |address: &String| Ok(Watched { device: address.parse()?, domain: "guest".to_owned() });
    let devices: Result<Vec<Watched>, faults::BadRequester> = addresses.iter().map(watched).collect();
    let place = move |_domain: &str, iova: Iova| match iova.0 {
        at if at < ram => Place::Ram,
        at if at < 1 << 32 => Place::Hole,
        _ => Place::Beyond,
    };
    let tell = |fault: Fault| {
        let late = SystemTime::now().duration_since(fault.time).unwrap_or_default();
        println!("event {} after {} ms: {fault}", fault.burst, late.as_millis());
    };
    let watch = Watch::start(Inputs::open(), devices?, Box::new(place), Box::new(tell))?;
    println!("{}", watch.sources());
    std::thread::sleep(Duration::from_secs(seconds.parse()?));
    Ok(())
}
