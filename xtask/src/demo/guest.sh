for i in 1 2 3 4 5 6 7 8 9 10; do [ -b /dev/vda ] && [ -b /dev/nvme0n1 ] && break; sleep 0.3; done
echo "@step guest: $(uname -sr) is up; it sees a virtio disk and an NVMe controller of its own"
echo "@fact guest-before-sda $(sha256sum /dev/vda | cut -d' ' -f1)"
echo "@fact guest-before-nvme $(sha256sum /dev/nvme0n1 | cut -d' ' -f1)"
echo "@step guest: has read both disks whole; now it writes 16 MiB to each, in requests of 4 KiB and of 1 MiB"
for d in /dev/vda /dev/nvme0n1; do
  lab-io fill $d 4194304 8388608 4096 11 && lab-io fill $d 33554432 8388608 1048576 12 || exit 1
done
sync
echo "@step guest: reads both whole once more"
echo "@fact guest-after-sda $(sha256sum /dev/vda | cut -d' ' -f1)"
echo "@fact guest-after-nvme $(sha256sum /dev/nvme0n1 | cut -d' ' -f1)"
read -r _ _ r _ _ _ w _ < /sys/block/nvme0n1/stat
echo "@fact nvme-read $((r / 2048))MiB"
echo "@fact nvme-written $((w / 2048))MiB"
echo "@step guest: powers off"
