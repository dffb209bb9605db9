//! How the program is linked.

fn main() {
    // A static program that may lie anywhere corrects some 11,000 pointers of its own at each start. Their list has 270 KB,
    // all of which is read; packed it has 3 (DT_RELR; binutils since 2.38, glibc since 2.36, both as in Debian 12).
    println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    println!("cargo::rerun-if-changed=build.rs");
}
