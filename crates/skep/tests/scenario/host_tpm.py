"""A TPM for the emulated host: /dev/tpm0 by the kernel's proxy, executed by swtpm. It is started up and tested before the kernel
sees it, for under emulation that takes longer than the kernel waits. The argument is the folder of its state."""
import array, fcntl, os, socket, struct, subprocess, sys
control, its_control = socket.socketpair()
data, its_data = socket.socketpair()
subprocess.Popen(["swtpm", "socket", "--tpm2", "--terminate", "--ctrl", "type=unixio,clientfd=0",
                  "--tpmstate", "dir=" + sys.argv[1]], stdin=its_control)
def ask(command, body=b"", fds=()):
    control.sendmsg([struct.pack(">I", command) + body],
                    [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else [])
    control.recv(64)
def execute(command):
    data.sendall(command)
    return data.recv(4096)
ask(0x10, fds=[its_data.fileno()])
ask(0x02, bytes(4))
execute(struct.pack(">HIIH", 0x8001, 12, 0x144, 0))
execute(struct.pack(">HIIB", 0x8001, 11, 0x143, 0))
new = bytearray(struct.pack("=5I", 1, 0, 0, 0, 0))
fcntl.ioctl(os.open("/dev/vtpmx", os.O_RDWR), 0xC014A100, new)
device = struct.unpack("=5I", new)[2]
while True:
    command = os.read(device, 4096)
    # The kernel's own, for localities.
    own = command[6:10] == b"\x20\x00\x10\x00"
    os.write(device, struct.pack(">HII", 0x8001, 10, 0) if own else execute(command))
