nvme=@nvme0
driver() { basename "$(readlink /sys/bus/pci/devices/$nvme/driver)"; }
echo "@fact nvme-address $nvme"
echo "@step host: Linux $(uname -r) with KVM and an IOMMU; /dev/sda on AHCI, NVMe at $nvme (driver $(driver), IOMMU group $(basename $(readlink /sys/bus/pci/devices/$nvme/iommu_group)))"
echo "@fact host-before-sda $(sha256sum /dev/sda | cut -d' ' -f1)"
echo "@fact host-before-nvme $(sha256sum /dev/nvme0n1 | cut -d' ' -f1)"
echo "@step host: has read both disks; now: skep run --disk /dev/sda --assign $nvme"
skep run --name demo --memory 256M --kernel /lab/guest/vmlinux --initrd /lab/guest/initrd --disk /dev/sda --assign $nvme \
  --report /tmp/report.json \
  --cmdline "console=ttyS0 quiet no_timer_check panic=-1 lab.run=$(base64 -w0 < /share/guest.sh)" </dev/null || exit 1
for i in 1 2 3 4 5 6 7 8 9 10; do [ -b /dev/nvme0n1 ] && break; sleep 0.3; done
echo "@step host: the guest is gone, the NVMe controller is back with its driver ($(driver))"
echo 3 > /proc/sys/vm/drop_caches
echo "@fact host-after-sda $(sha256sum /dev/sda | cut -d' ' -f1)"
echo "@fact host-after-nvme $(sha256sum /dev/nvme0n1 | cut -d' ' -f1)"
number() { sed -n "s/.*\"$1\": \([0-9]*\).*/\1/p" /tmp/report.json; }
echo "@fact sda-read $(($(number bytes_read) >> 20))MiB"
echo "@fact sda-written $(($(number bytes_written) >> 20))MiB"
echo "@fact sda-copied $(($(number alignment) + $(number asked) + $(number page-cache)))"
echo "@fact dma-faults $(dmesg | grep -cE 'DMAR: \[DMA|IO_PAGE_FAULT')"
