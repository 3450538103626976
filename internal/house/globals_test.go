package house

import (
	"errors"
	"go/ast"
	"go/token"
	"go/types"
)

// assignedGlobals returns where f assigns to a package variable, takes its address or changes an element of it. Other
// packages are not loaded: what one package changes in another does not compile for the rules of [checkVariable].
func assignedGlobals(fset *token.FileSet, f file, files []file) []*ast.Ident {
	var parts []*ast.File // of the same package
	for _, other := range files {
		if other.pkg == f.pkg && other.Name.Name == f.Name.Name {
			parts = append(parts, other.File)
		}
	}
	info := types.Info{Uses: make(map[*ast.Ident]types.Object)}
	conf := types.Config{Error: func(error) {}, Importer: nothing{}}
	pkg, _ := conf.Check(f.pkg, fset, parts, &info) // errors are about imports, which are left out

	var found []*ast.Ident
	changed := func(e ast.Expr) {
		id := base(e)
		if id == nil {
			return
		}
		if v, ok := info.Uses[id].(*types.Var); ok && v.Parent() == pkg.Scope() {
			found = append(found, id)
		}
	}
	ast.Inspect(f.File, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.AssignStmt:
			for _, e := range n.Lhs {
				changed(e)
			}
		case *ast.IncDecStmt:
			changed(n.X)
		case *ast.RangeStmt:
			if n.Tok == token.ASSIGN {
				changed(n.Key)
				changed(n.Value)
			}
		case *ast.UnaryExpr:
			if n.Op == token.AND {
				changed(n.X)
			}
		}
		return true
	})
	return found
}

// base returns the variable that e is, or is a part of; nil if there is none.
func base(e ast.Expr) *ast.Ident {
	for {
		switch x := e.(type) {
		case *ast.Ident:
			return x
		case *ast.IndexExpr:
			e = x.X
		case *ast.SelectorExpr:
			e = x.X
		case *ast.StarExpr:
			e = x.X
		case *ast.ParenExpr:
			e = x.X
		default:
			return nil
		}
	}
}

// nothing is an importer that finds no package.
type nothing struct{}

func (nothing) Import(path string) (*types.Package, error) {
	return nil, errors.New(path + " is not needed")
}
