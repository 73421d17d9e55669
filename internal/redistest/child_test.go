package redistest

import (
	"fmt"
	"os"
)

// child starts a server, says where, and waits to be killed.
func child(dir string) {
	s, err := Launch(dir)
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println(s.Addr())
	select {}
}
